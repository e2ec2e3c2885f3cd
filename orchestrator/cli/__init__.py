"""The command line: words in, one call, text out. Only here does a flag have a name."""


def main() -> None:
    """Entry point of `ebm`, as installed commands name it."""
    from orchestrator.cli.app import main as run

    run()
