"""The paper's numbers stand in one file, and every place that shows one shows the table's that it names."""

import re
from pathlib import Path

import pytest

from orchestrator.reports.run_data import PAPER_SCORES
from orchestrator.settings.job import job_preset
from orchestrator.sweeps.grids import GRIDS
from workers.metrics.published import PUBLISHED, TABLE_1, TABLE_2, TABLE_3
from workers.studies import ood
from workers.studies.ood_sets import CROP

ROOT = Path(__file__).parents[3]


def test_pages_and_score_documents_show_table_1_and_the_grid_table_2():
    for name, score in TABLE_1.items():
        assert PAPER_SCORES["cifar10"][name] == PUBLISHED[name]["value"] == score
    rows = {row.key: row.paper for row in GRIDS["table2"].rows(job_preset("cifar10"))}
    assert rows == TABLE_2
    assert (TABLE_1["inception_score"], rows["full"]["inception_score"]) == (7.58, 7.48)
    assert "Table 2 has 7.48" in PUBLISHED["inception_score"]["where"]
    assert {name: ood.PUBLISHED[name] for name in TABLE_3} == TABLE_3
    assert ood.PUBLISHED[CROP] == TABLE_3["textures"]


@pytest.mark.parametrize("number", ["7.58", "7.48", "35.4", "253.1", "6.78"])
def test_no_other_module_repeats_a_number_of_a_table(number: str):
    pattern = re.compile(rf"(?<![\d.]){re.escape(number)}(?![\d.])")
    files = [path for room in ("ebm_core", "workers", "orchestrator") for path in (ROOT / room).rglob("*.py")]
    assert [path.name for path in files if pattern.search(path.read_text())] == ["published.py"]
