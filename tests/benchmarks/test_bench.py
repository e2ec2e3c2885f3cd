import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import bench
from benchmarks.bench import Row, check


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    """Exit status of `python -m benchmarks.bench` with these words."""
    monkeypatch.setattr("sys.argv", ["bench", *words])
    with pytest.raises(SystemExit) as end:
        bench.main()
    return end.value.code


def test_help_lists_the_sections(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert all(section.__name__ in text for section in bench.SECTIONS)


@pytest.mark.parametrize("words", [("--only", "ray"), ("--only",)])
def test_a_section_that_there_is_not_is_refused(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, *words) == 2


RECORDED = [
    {"name": "speed", "ratio": 2.0, "target": 1.9, "at_most": False},
    {"name": "share", "ratio": 0.02, "target": 0.03, "at_most": True},
    {"name": "curve", "ratio": 1.0, "target": None, "at_most": False},
]


@pytest.mark.parametrize(
    ("speed", "share", "curve", "status"),
    [(1.81, 0.0219, 5.0, 0), (1.79, 0.02, 1.0, 1), (2.0, 0.0221, 1.0, 1), (9.0, 0.001, 0.1, 0)],
)
def test_the_guard_fails_beyond_a_tenth_on_the_worse_side_of_rows_that_have_a_target(
    speed: float, share: float, curve: float, status: int
) -> None:
    rows = [Row("speed", speed, 1.9), Row("share", share, 0.03, at_most=True), Row("curve", curve)]
    assert check(rows, RECORDED) == status


def test_the_guard_misses_a_row_that_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([Row("speed", 2.0, 1.9), Row("curve", 1.0)], RECORDED) == 1
    assert "missing: share" in capsys.readouterr().out


def reports() -> list[dict]:
    return json.loads(Path(bench.__file__).with_name("recorded.json").read_text())


def test_what_the_repository_has_recorded_can_be_compared_with() -> None:
    assert len({report["cpu"] for report in reports()}) == len(reports()) > 0
    for report in reports():
        rows = [Row(row["name"], row["ratio"], row["target"], row["at_most"]) for row in report["rows"]]
        assert check(rows, report["rows"]) == 0


def test_a_record_of_a_cpu_of_this_kind_is_compared_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, words = tmp_path / "recorded.json", ("--only", "quick", "--json", str(tmp_path / "out.json"), "--check")

    def quick(rounds: int) -> Iterator[Row]:
        yield Row("speed", 1.0, 0.5)

    monkeypatch.setattr(bench, "SECTIONS", (quick,))
    kinds = {"AVX512": 1.0, "AVX512 with AMX": 3.0}
    row = {"name": "speed", "target": 0.5, "at_most": False}
    record.write_text(json.dumps([{"cpu": cpu, "rows": [row | {"ratio": ratio}]} for cpu, ratio in kinds.items()]))
    for here, status in {"AVX512": 0, "AVX512 with AMX": 1, "AVX2": 2}.items():
        monkeypatch.setattr(bench, "kind_of_cpu", lambda here=here: here)
        assert run(monkeypatch, *words, str(record)) == status
    assert "no record of a CPU with AVX2, only of AVX512, AVX512 with AMX" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("has", "kind"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "AVX512 with AMX"),
        ({"amx_bf16": False, "avx512_bf16": True}, "AVX512 with bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": False}, "AVX512"),
        ({}, "AVX512"),
    ],
)
def test_the_kind_of_a_cpu_says_what_it_has_for_bfloat16(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], kind: str
) -> None:
    monkeypatch.setattr(bench.torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(bench.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert bench.kind_of_cpu() == kind
