"""`ebm metrics`: what Prometheus needs to watch a cluster."""

import json
from typing import Annotated

import typer

metrics_app = typer.Typer(
    help="Watch runs with Prometheus: list the gauges, print a configuration.", no_args_is_help=True
)


@metrics_app.command("config")
def metrics_config(
    temp_dir: Annotated[
        str, typer.Option(help="Temporary folder of Ray on the head node (`ray start --temp-dir`).")
    ] = "/tmp/ray",
    rules: Annotated[str, typer.Option(help="File with the alert rules, as Prometheus finds it.")] = "alerts.yml",
) -> None:
    """Print a Prometheus configuration that finds the nodes of a Ray cluster and the gauges of its runs.

    Example: ebm metrics config > prometheus.yml
    """
    from orchestrator.monitoring.values import scrape_config

    print(scrape_config(temp_dir, rules), end="")


@metrics_app.command("list")
def metrics_list(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List the gauges that runs export to Prometheus, with their meanings."""
    from orchestrator.monitoring.values import described

    found = described()
    if json_:
        print(json.dumps(found, indent=2))
    else:
        width = max(len(line["name"]) for line in found)
        print("\n".join(f"{line['name']:<{width}}  {line['help']}" for line in found))
