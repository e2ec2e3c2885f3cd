"""Charts: where values land, which points are kept, what the numbers at the axes are."""

import math
import re

import pytest

from orchestrator.reports.axes import Axis, log_ticks, nice_ticks, tick_text
from orchestrator.reports.charts import FRAMES, Chart, Mark, Series, draw, thin
from orchestrator.reports.parallel import Line, Scale, draw_parallel


def test_ticks_are_round_and_inside():
    assert nice_ticks(0.0, 1.0, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(-1.15, 0.6, 5) == pytest.approx([-1.0, -0.5, 0.0, 0.5])
    assert nice_ticks(3.0, 297.0, 4) == pytest.approx([100, 200])
    assert log_ticks(0.5, 2000.0) == pytest.approx([1, 10, 100, 1000])
    assert log_ticks(0.15, 0.6) == pytest.approx([0.2, 0.5])


def test_numbers_at_the_axes_are_short_and_have_a_true_minus():
    assert [tick_text(v) for v in (0.0, -0.5, 1e6, 0.30000000000000004, 20000)] == ["0", "−0.5", "1e6", "0.3", "20000"]


def test_an_axis_is_linear_or_logarithmic():
    assert Axis(0.0, 10.0, 100.0, 200.0).at(2.5) == 125.0
    log = Axis(1.0, 100.0, 0.0, 1.0, log=True)
    assert log.at(10.0) == pytest.approx(0.5)
    assert not log.can_show(0.0)


def test_thinning_keeps_every_extreme_and_every_gap():
    y: list[float | None] = [math.sin(i / 50) for i in range(10_000)]
    y[4321], y[7000], y[9000] = 50.0, -50.0, math.nan
    kept = thin(range(10_000), y, 400)
    assert len(kept) <= 401 + 1
    assert (4321.0, 50.0) in kept
    assert (7000.0, -50.0) in kept
    assert (9000.0, None) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_a_curve_is_drawn_where_its_values_are_with_a_gap_where_there_is_none():
    chart = Chart("t", "d", [Series("a", [0, 10, 20, 30], [0.0, 1.0, None, 1.0])], "x", "y", y_range=(0.0, 1.0))
    svg = str(draw(chart))
    paths = re.findall(r'<path d="([^"]+)"', svg)
    assert len(paths) == len(FRAMES)
    frame = FRAMES["wide"]
    top, bottom, left, right = frame.top, frame.height - frame.bottom, frame.left, frame.width - frame.right
    third = left + (right - left) / 3
    assert paths[0] == f"M{left:.1f} {bottom:.1f}L{third:.1f} {top:.1f}M{right:.1f} {top:.1f}"


def test_names_are_escaped_inside_a_chart():
    text = "<b onclick='x'>\"&"
    chart = Chart(text, text, [Series(text, [1, 2], [1, 2], text)], text, text, marks=[Mark(1, text)])
    for svg in (str(draw(chart)), str(draw_parallel(text, text, [text], [Line(text, [text], text)]))):
        assert "<b" not in svg
        assert "'x'" not in svg


def test_a_parallel_axis_of_numbers_is_logarithmic_over_two_decades_and_words_stand_apart():
    assert Scale("lr", ["0.001", "0.1"]).at("0.01") == pytest.approx(0.5)
    assert Scale("w", ["0", "10"]).at("5") == pytest.approx(0.5)
    kinds = Scale("kind", ["fifo", "reservoir", "fifo", None])
    assert (kinds.at("fifo"), kinds.at("reservoir"), kinds.at(None)) == (0.0, 1.0, None)
    assert Scale("one", ["same", "same"]).at("same") == 0.5
