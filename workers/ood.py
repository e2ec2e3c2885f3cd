"""The command `python -m workers.ood FILE`: the scores again from energies that `ebm evaluate` stored."""

import json
import sys
from collections.abc import Sequence

import pyarrow.parquet as pq

from workers.studies.ood import columns_of, report


def main(files: Sequence[str]) -> None:
    """Print the scores of energies that `ebm evaluate` stored."""
    for file in files:
        rows = pq.read_table(file)
        origin = json.loads((rows.schema.metadata or {})[b"ebm"])
        print(json.dumps(origin | report(columns_of(rows), origin["published"]), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
