"""The notebook of docs/ runs, and what it keeps below its cells is what they print."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "library.ipynb"


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What the cells printed, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["text"] for output in outputs if output["output_type"] == "stream"]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


@pytest.mark.timeout(900)
@pytest.mark.xdist_group("documents")
@pytest.mark.filterwarnings("default")  # of the tools that run it; the kernel is a process of its own
def test_the_notebook_prints_again_what_it_keeps():
    kept = nbformat.read(NOTEBOOK, as_version=4)
    again = nbformat.read(NOTEBOOK, as_version=4)
    manager = AsyncKernelManager(kernel_name="python3", transport="ipc")
    place = {"metadata": {"path": str(NOTEBOOK.parents[1])}}
    NotebookClient(again, km=manager, timeout=900, resources=place, coalesce_streams=True).execute()
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
