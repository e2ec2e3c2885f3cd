"""A coverage-guided fuzzer (atheris) on the readers of checkpoints and manifests; `make fuzz` runs it.

    python -m tests.fuzz.fuzz_readers SECONDS

It ends with status 0 when nothing but EbmError was raised, no input took 10 s or 2 GiB, and no file appeared outside
the scratch folder's known places; otherwise it prints the input, which libFuzzer also writes to a file.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["ebm_core.manifest", "ebm_core.checkpoint", "orchestrator", "json", "safetensors"]
):
    import orchestrator.commits
    import orchestrator.rollback  # noqa: F401

from tests.fuzz.targets import Targets

KNOWN = {"whole", "hostile", "runs"}


def main(seconds: int) -> None:
    """Fuzz for so long."""
    with tempfile.TemporaryDirectory(prefix="ebm-fuzz-") as temp:
        root = Path(temp, "a", "b")  # a file that climbs out is seen in `temp`
        root.mkdir(parents=True)
        targets = Targets(root)
        chosen = list(targets.all().items())
        corpus = Path(temp, "corpus")
        corpus.mkdir()
        for number, (name, _) in enumerate(chosen):
            (corpus / str(number)).write_bytes(bytes([number]) + targets.seed(name))

        def one(data: bytes) -> None:
            if data:
                chosen[data[0] % len(chosen)][1](data[1:])
                assert {path.name for path in root.iterdir()} <= KNOWN, "a file appeared outside"
                assert len(list(Path(temp).iterdir())) == 2
                assert len(list((root / "hostile").iterdir() if (root / "hostile").exists() else [])) <= 32

        limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536"]
        atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]))
