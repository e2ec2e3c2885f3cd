"""`ebm metrics`: what Prometheus needs to watch a cluster."""

import json
from typing import Annotated

import typer

metrics_app = typer.Typer(help="What Prometheus needs to watch runs.", no_args_is_help=True)


@metrics_app.command("config")
def metrics_config(
    temp_dir: Annotated[str, typer.Option(help="Ray's --temp-dir on the head node.")] = "/tmp/ray",
    rules: Annotated[str, typer.Option(help="Files with alert rules.")] = "alerts.yml",
) -> None:
    """Print a Prometheus configuration that finds a Ray cluster's nodes and its runs.

    Example: ebm metrics config > prometheus.yml
    """
    from orchestrator.monitoring.values import scrape_config

    print(scrape_config(temp_dir, rules), end="")


@metrics_app.command("list")
def metrics_list(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the metrics that runs export."""
    from orchestrator.monitoring.values import described

    found = described()
    if json_:
        print(json.dumps(found, indent=2))
    else:
        width = max(len(line["name"]) for line in found)
        print("\n".join(f"{line['name']:<{width}}  {line['help']}" for line in found))
