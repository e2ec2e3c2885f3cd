"""`python -m orchestrator.cli`: how a submitted job starts the command on its cluster."""

from orchestrator.cli.app import main

if __name__ == "__main__":
    main()
