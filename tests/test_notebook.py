"""The notebook of docs/ runs, and what it keeps below its cells is what they print."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "library.ipynb"


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What the cells printed, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["text"] for output in outputs if output["output_type"] == "stream"]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


EXECUTE = """
import sys, nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")  # no port that others could reach
NotebookClient(notebook, km=kernel, timeout=900, coalesce_streams=True).execute()
nbformat.write(notebook, sys.argv[2])
"""
"""In a process of its own, whose sockets and threads are no concern of the tests that run after it."""


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("documents")
def test_the_notebook_prints_again_what_it_keeps(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
    command = [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(tmp_path / "again.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = nbformat.read(NOTEBOOK, as_version=4)
    again = nbformat.read(tmp_path / "again.ipynb", as_version=4)
    assert [re.sub(r"-?\d+\.\d+", "#", text) for text in printed(again)] == [
        re.sub(r"-?\d+\.\d+", "#", text) for text in printed(kept)
    ]
    *_, energies, ink = printed(again)
    _, above_negatives, above_noise = [numbers(line)[-1] for line in energies.splitlines()]
    assert min(above_negatives, above_noise) > 0.9
    (_, below), (_, below_composed) = [numbers(line) for line in ink.splitlines()]
    assert below_composed < below


def test_every_cell_of_the_kept_notebook_has_run_once_and_in_order():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    shown = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert not any(output["output_type"] == "error" for output in shown)
