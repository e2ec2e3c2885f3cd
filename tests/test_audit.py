"""What the judge of bandit and pip-audit lets pass, what it does not, and that docs/security.md explains the former."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import audit

DOC = Path(__file__).parents[1] / "docs" / "security.md"
ACCEPTED = {("B1", "a/b.py"): "reason", ("B2", "bench/*"): "reason", ("B3", "*"): "reason"}


def test_a_finding_that_is_not_listed_is_told_with_its_place():
    found = [("B1", "a/b.py:7", "x"), ("B2", "bench/y.py:1", "x"), ("B3", "any/where.py:1", "x")]
    assert list(audit.judge(found, ACCEPTED)) == []
    assert list(audit.judge([*found, ("B1", "a/c.py:3", "why")], ACCEPTED)) == ["bandit B1 a/c.py:3: why"]
    assert list(audit.judge([*found, ("B9", "a/b.py:3", "why")], ACCEPTED)) == ["bandit B9 a/b.py:3: why"]


def test_an_acceptance_that_nothing_needs_is_told():
    (line,) = audit.judge([("B1", "a/b.py:7", "x"), ("B2", "bench/y.py:1", "x")], ACCEPTED)
    assert "bandit B3 *: accepted in tests/audit.py and found no more" in line


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(packages)}


HOLE = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}]}


def test_a_known_vulnerability_is_told_unless_it_is_explained_by_any_of_its_names():
    assert list(audit.vulnerable(report(HOLE), {})) == ["pip-audit a 1: PYSEC-1, mended in 2"]
    for name in ("PYSEC-1", "CVE-1"):
        assert list(audit.vulnerable(report(HOLE), {name: "reason"})) == []


def answers(monkeypatch: pytest.MonkeyPatch, *outputs: tuple[str, str]) -> None:
    """What pip-audit prints, call by call: its output and its complaints."""
    queue = list(outputs)

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, *queue.pop(0))

    monkeypatch.setattr(subprocess, "run", run)


KNOWN = '{"dependencies": [{"name": "pip", "version": "25.0", "vulns": []}]}'
SKIPPED = '{"dependencies": [{"name": "pip", "skip_reason": "not found"}]}'
HOLED = '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]}]}'


@pytest.mark.parametrize("first", [("", "requests.exceptions.ConnectionError: no route"), (SKIPPED, "")])
def test_a_service_that_is_away_or_knows_nothing_fails_nothing_and_says_so_in_one_line(
    first: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    answers(monkeypatch, first)
    assert list(audit.audit_dependencies()) == []
    assert capsys.readouterr().out == (
        "pip-audit: no service with known vulnerabilities answers here, nothing was audited\n"
    )


def test_a_service_that_answers_is_asked_about_everything(monkeypatch: pytest.MonkeyPatch):
    answers(monkeypatch, (KNOWN, ""), (HOLED, ""))
    assert list(audit.audit_dependencies()) == ["pip-audit a 1: X, mended in no version"]


def test_a_broken_pip_audit_is_no_clean_bill(monkeypatch: pytest.MonkeyPatch):
    answers(monkeypatch, ("", "usage: pip-audit\nerror: unknown option"))
    with pytest.raises(SystemExit, match="pip-audit: error: unknown option"):
        list(audit.audit_dependencies())


def test_every_accepted_finding_is_explained_in_the_document():
    rows = [row.split("|") for row in DOC.read_text().splitlines() if row.startswith("| B")]
    explained = {(cells[1].strip(), cells[2].strip().strip("`")): cells[3].strip() for cells in rows}
    assert explained == audit.BANDIT
    for name in audit.VULNERABILITIES:
        assert name in DOC.read_text()


def test_every_test_that_the_document_names_exists():
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", DOC.read_text())
    named = [(path, test) for path, test in named if "/test_" in path or path.startswith("test_")]
    assert len(named) > 20
    for path, test in named:
        source = (DOC.parents[1] / "tests" / path).read_text()
        assert not test or f"def {test}(" in source, f"{path}::{test}"
