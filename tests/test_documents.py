"""Every command of the tutorial and of README is run, in the documents' order, as a person would type it.

Each document has a folder of its own, which is also HOME. The commands start a Ray of their own where they need one.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.orchestrator.stored_runs import store_sweep

ROOT = Path(__file__).parents[1]
LIMIT_S = 600
"""For one block: starting Ray alone takes half a minute on a busy machine."""

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("documents"), pytest.mark.timeout(LIMIT_S + 60)]


def blocks(document: str) -> list[str]:
    """The ```sh blocks of a document."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def lines(document: str) -> list[str]:
    """The commands of a document's blocks, without the remarks behind them."""
    found = [re.sub(r"(^|\s+)#.*", "", line).strip() for block in blocks(document) for line in block.splitlines()]
    return [line for line in found if line]


def run(script: str, folder: Path) -> str:
    """What the script prints to standard output; it fails at the first command that fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EBM_", "AWS_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, f"{script}\nstatus {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def shorter(text: str) -> str:
    """The tutorial's training for 60 steps instead of 300, minutes less; the checkpoint's name follows."""
    return text.replace("train.num_steps=300", "train.num_steps=60").replace("step-000000300", "step-000000060")


TUTORIAL = [shorter(block) for block in blocks("docs/tutorial.md")]
PROMISED = re.findall(r"^<!-- makes: (.+) -->$", shorter((ROOT / "docs/tutorial.md").read_text()), re.MULTILINE)
"""Files that the tutorial says are there at its end; the remark stands where the text speaks of them."""


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


@pytest.mark.full
@pytest.mark.parametrize("number", range(len(TUTORIAL)))
def test_a_block_of_the_tutorial_runs(lesson: Path, number: int):
    run(TUTORIAL[number], lesson)


@pytest.mark.full
def test_the_tutorial_leaves_what_it_promises(lesson: Path):
    assert len(PROMISED) >= 4
    for pattern in PROMISED:
        found = [path for path in lesson.glob(pattern) if path.is_file()]
        assert found, pattern
        assert all(path.stat().st_size > 100 for path in found), pattern


@dataclass(frozen=True)
class Instead:
    """What runs in place of a line of README, and why it does not run as written."""

    script: str
    why: str


MINUTES, ELSEWHERE = "takes minutes", "needs a cluster, a bucket, GPUs and published files"
README_LINES = {
    "make demo": Instead(f"make --dry-run -C {ROOT} demo | grep 'ebm train digits$'", MINUTES),
    "make test": Instead(f"make --dry-run -C {ROOT} test | grep 'pytest .*--floor test '", MINUTES),
    "ebm train digits name=first train.num_steps=500": Instead(
        "ebm train digits name=first train.num_steps=500 train.num_steps=20 evaluation.num_images=200 "
        "evaluation.metrics=fid_judge sampler.generate_steps=20",
        MINUTES,
    ),
    "ebm train cifar10 data.root=~/data storage=s3://runs cluster.num_workers=4 cluster.use_gpu=true": Instead(
        "ebm config cifar10 data.root=~/data storage=s3://runs cluster.num_workers=4 cluster.use_gpu=true", ELSEWHERE
    ),
    "ray job submit --address http://head:8265 -- ebm train cifar10 storage=s3://runs": Instead(
        "ray job submit --help | grep -e --address; ebm config cifar10 storage=s3://runs", ELSEWHERE
    ),
    "ebm evaluate first --metrics fid_judge,kid_judge,ood,chains ood.sets=interpolation,noise": Instead(
        "ebm evaluate first --metrics fid_judge,kid_judge,ood,chains ood.sets=interpolation,noise "
        "--num-images 200 ood.limit=50 chains.num_chains=4 chains.num_steps=20 chains.descent_steps=20",
        MINUTES,
    ),
    "ebm train digits name=classes data.condition=label train.num_steps=300": Instead(
        "ebm train digits name=classes data.condition=label train.num_steps=300 train.num_steps=2 evaluation.every=0 "
        "evaluation.metrics=",
        MINUTES,
    ),
    "ebm compose classes:3 classes:8 --op or": Instead(
        "ebm compose classes:3 classes:8 --op or --num-images 16 --steps 20", MINUTES
    ),
    "ebm sweep table2 --smoke": Instead("ebm sweep table2 --smoke --dry-run", MINUTES),
    "ebm sweep digits sampler.step_size='loguniform(0.5,10)' train.num_steps=450 evaluation.every=50 "
    "--trials 8 --scheduler asha": Instead(
        "ebm sweep digits sampler.step_size='loguniform(0.5,10)' train.num_steps=450 evaluation.every=50 "
        "--trials 8 --scheduler asha --dry-run",
        MINUTES,
    ),
    "ebm doctor": Instead("ebm doctor || [ $? = 1 ]", "status 1 says that this machine lacks something"),
}
"""Lines of README that are not run as written. `ebm report table2-digits-smoke` reads a sweep that `readme` stores."""


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep that README speaks of and that takes too long to make here."""
    folder = tmp_path_factory.mktemp("readme")
    store_sweep(folder / "runs", "table2-digits-smoke")
    return folder


@pytest.mark.full
@pytest.mark.parametrize("line", lines("README.md"))
def test_a_line_of_readme_runs(readme: Path, line: str):
    instead = README_LINES.get(line)
    assert run(line if instead is None else instead.script, readme).strip()


def test_every_exception_is_a_line_of_readme():
    found = lines("README.md")
    assert README_LINES.keys() <= set(found)
    assert len(found) - len(README_LINES) >= 4  # these run as written
