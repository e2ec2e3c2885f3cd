"""Pages: what is gathered, that nothing of a run can become markup, and how large a page may be."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ebm_core.errors import ConfigError
from orchestrator.records.rows import part_bytes, part_name
from orchestrator.reports import compare_page, pictures, run_data, sweep_page, write
from orchestrator.reports.run_page import run_page, stability_tile, tiles
from orchestrator.reports.sweep_data import gather_sweep
from orchestrator.reports.sweep_page import MAX_GRIDS, grid_table, sweep_html
from orchestrator.reports.write import follow, leave_page, write_report
from orchestrator.storage.run_store import RunStore
from tests.orchestrator import stored_runs
from tests.orchestrator.stored_runs import store_run, store_sweep

LIMIT_BYTES = 5_000_000


class Elements(HTMLParser):
    """Tags and attributes of a page, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_gathering_gives_back_what_training_stored(tmp_path: Path):
    data = run_data.gather(store_run(tmp_path, settings=["optimizer.lr=0.5"]))
    assert (data.state, data.step, data.num_steps, data.preset) == ("finished", 200, 200, "digits_paper")
    assert data.rows["step"] == [1, *range(10, 201, 10)]
    assert data.rows["energy_gap"] == [row["energy_gap"] for row in stored_runs.rows_of(200)]
    assert "loss/opt" in data.rows
    assert "grad_norm/cd" not in data.rows  # was never logged
    assert {s.path: (s.value, s.preset) for s in data.settings if s.changed} == {
        "optimizer.lr": (0.5, 0.001),
        "train.num_steps": (200, 1500),
    }
    assert list(data.scores) == [100, 200]


def test_cost_is_time_between_rows_times_workers_times_their_cpus():
    # 5 steps a second: 200 steps are 40 s; a pause of an hour between two rows is not training
    rows = {name: [row[name] for row in stored_runs.rows_of(200)] for name in ("step", "time", "steps_per_s")}
    rows["time"] = [t + (3600 if step > 100 else 0) for t, step in zip(rows["time"], rows["step"], strict=True)]
    cost = run_data.measure_cost(rows, {"cluster.num_workers": 2}, [{"hardware": {"cpus": 8}}])
    assert cost.train_s == pytest.approx(40.0)
    assert cost.hours == pytest.approx(40.0 / 3600 * 2 * 4)
    gpu = run_data.measure_cost(rows, {"cluster.num_workers": 2, "cluster.use_gpu": True}, [])
    assert (gpu.unit, gpu.hours) == ("GPU-hours", pytest.approx(80.0 / 3600))
    quarter = run_data.measure_cost(rows, {"cluster.use_gpu": True, "cluster.gpus_per_worker": 0.25}, [])
    assert quarter.hours == pytest.approx(10.0 / 3600)


def test_a_later_launch_is_marked_where_its_first_row_is(tmp_path: Path):
    run = store_run(tmp_path)
    first = stored_runs.first_launch()
    later = first | {"started": "2025-10-09T08:53:50.500000+00:00"}  # 30.5 s after the start, at 5 steps a second
    run.write_json("provenance.json", {"launches": [first, later]})
    assert run_data.gather(run).resumed_at == [160]


def test_the_end_of_the_warm_start_is_marked_in_every_curve_over_training(tmp_path: Path):
    page = run_page(store_run(tmp_path / "warm", settings=["warmup.num_steps=120"]))
    assert "The first 120 steps are flow matching, a warm start." in text_of(page)
    assert page.count("contrastive divergence from step 120") >= 3  # gap, loss terms, gradients, each in its frames
    plain = run_page(store_run(tmp_path / "plain"))
    assert "contrastive divergence from" not in plain
    assert "warm start" not in text_of(plain).partition("Settings")[0]
    early = run_page(store_run(tmp_path / "early", settings=["warmup.num_steps=200"]))
    assert "contrastive divergence from" not in early  # which never came


def test_a_diverged_run_is_told_unstable_where_it_happened(tmp_path: Path):
    run = store_run(tmp_path, broken=True)
    data = run_data.gather(run)
    assert (data.state, data.diverged_at) == ("diverged", 200)
    assert (stability_tile(data).value, stability_tile(data).kind) == ("unstable", "bad")
    text = text_of(run_page(run))
    assert "diverged at step 200 of 200" in text
    assert "Training left the stable region at step 200" in text


def test_a_run_that_comes_near_the_limit_is_not_called_stable(tmp_path: Path):
    run = store_run(tmp_path)
    assert stability_tile(run_data.gather(run)).value == "stable"
    row = {"step": 210, "running_gap": -0.51, "time": 0.0, "steps_per_s": 1.0}
    run.write_bytes("metrics/part-000000210-000000210.parquet", part_bytes([row]))
    assert stability_tile(run_data.gather(run)).value == "at risk"


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;{{ 7*7 }}"


def test_nothing_of_a_run_becomes_markup(tmp_path: Path):
    plain = Elements(run_page(store_run(tmp_path)))
    run = store_run(tmp_path, "hostile")
    stored_runs.hostile(run, HOSTILE)
    page = run_page(run)
    found = Elements(page)
    assert set(found.tags) == set(plain.tags)
    assert "script" not in found.tags
    assert found.tags.count("img") == plain.tags.count("img")
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/") for name, value in found.attributes if name == "src")
    assert "&lt;script&gt;alert(1)" in page  # it is shown, as text
    assert "49" not in re.findall(r"&lt;(\d+)", page)


def test_nothing_of_a_sweep_or_a_comparison_becomes_markup(tmp_path: Path):
    folder = store_sweep(tmp_path)
    before = Elements(sweep_page.sweep_page(folder))
    plan = folder.read_json("sweep.json")
    plan |= {"title": HOSTILE, "note": HOSTILE, "metric": HOSTILE, "preset": HOSTILE}
    for row in plan["rows"]:
        row |= {"label": HOSTILE, "choices": {HOSTILE: HOSTILE}, "paper": {"fid": HOSTILE}}
    folder.write_json("sweep.json", plan)
    folder.write_json("crashes/strong-s1.json", {"reason": HOSTILE})
    planned = folder.read_json("planned/opt-s0.json") | {"trial": HOSTILE, "settings": [f"{HOSTILE}={HOSTILE}"]}
    folder.write_json("planned/opt-s0.json", planned)
    found = Elements(sweep_page.sweep_page(folder))
    assert set(found.tags) <= set(before.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    one, other = store_run(tmp_path, "one"), store_run(tmp_path, "other")
    stored_runs.hostile(one, HOSTILE)
    compared = Elements(compare_page.compare_page([one, other]))
    assert "script" not in compared.tags
    assert not [name for name, _ in compared.attributes if name.startswith("on")]


def test_a_page_asks_for_nothing_from_elsewhere(tmp_path: Path):
    page = run_page(store_run(tmp_path))
    found = Elements(page)
    assert not {"script", "iframe", "object", "embed"} & set(found.tags)
    outside = [
        v for name, v in found.attributes if name in ("src", "href", "action") and not v.startswith(("data:", "#"))
    ]
    assert outside == []
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in found.attributes


def test_a_page_of_large_noisy_grids_stays_under_5_mb(tmp_path: Path):
    # noise cannot be compressed: 64 images of 96 x 96 x 3 are 1.8 MB a grid as PNG, and there are 8 of them
    run = store_run(tmp_path, steps=200, grid_size=96, channels=3)
    for step in (20, 60):
        for suffix in ("", "-ema"):
            grid = stored_runs.digits_grid(step, 64, 96, 3)
            run.write_bytes(f"samples/step-{step:09d}{suffix}.png", grid)
    stored = sum(info.size for info in run.list("samples/"))
    assert stored > LIMIT_BYTES  # so that the bound is a bound
    page = run_page(run)
    assert len(page.encode()) < LIMIT_BYTES
    assert page.count("data:image/webp") == 9  # eight, and the newest again at the head


def test_thousands_of_rows_do_not_make_a_large_page(tmp_path: Path):
    run = store_run(tmp_path, steps=200)
    rows = stored_runs.rows_of(100_000)[25:]
    run.write_bytes(f"metrics/{part_name(rows)}", part_bytes(rows))
    assert len(run_data.gather(run).rows["step"]) > 9_000
    assert len(run_page(run).encode()) < 1_000_000


def test_grids_are_spread_over_training_with_both_ends():
    assert pictures.spread(range(100), 5) == [0, 25, 50, 74, 99]
    assert pictures.spread([3, 9], 5) == [3, 9]


def test_a_damaged_part_of_a_run_leaves_a_gap_and_no_error(tmp_path: Path):
    run = store_run(tmp_path)
    run.write_bytes("samples/step-000000100.png", b"not a picture")
    run.write_bytes("evaluations/step-000000200/ood-energies.parquet", b"not Parquet")
    run.write_bytes("evaluations/step-000000200/fid_small.json", b"{")
    run.write_bytes("provenance.json", b"[]")
    assert "digits-0001" in run_page(run)
    run.write_bytes("metrics/part-000000001-000000200.parquet", b"PAR1 no")
    assert "No energy gap is logged yet." in run_page(run)


def test_a_run_without_anything_yet_has_a_page(tmp_path: Path):
    run = RunStore(str(tmp_path)).run("young")
    run.write_config(json.loads((tmp_path / store_run(tmp_path).name / "config.json").read_text()))
    text = text_of(run_page(run))
    assert "No sample grid is stored yet" in text
    assert "No checkpoint is scored" in text


def test_leaving_a_page_never_takes_the_run_with_it(tmp_path: Path):
    run = store_run(tmp_path)
    said: list[str] = []
    assert leave_page(run, said.append) == "report/index.html"
    assert (said, run.read_bytes("report/index.html")[:15]) == ([], b"<!doctype html>")
    run.write_bytes("config.json", b"{")
    assert leave_page(run, said.append) is None
    assert "could not be made" in said[0]
    assert "ebm report digits-0001" in said[0]


def test_one_name_makes_a_page_beside_the_run_and_two_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store_run(tmp_path)
    store_run(tmp_path, "other", settings=["loss.kl_weight=0"])
    beside = write_report(["digits-0001"], storage=str(tmp_path))
    assert Path(beside) == tmp_path / "digits-0001/report/index.html"
    assert Path(beside).stat().st_size > 10_000
    page = Path(write_report(["digits-0001", "other"], storage=str(tmp_path))).read_text()
    assert "1 setting differs" in text_of(page)
    assert re.search(r"loss\.kl_weight\s+1\.0\s+0\.0", text_of(page))
    with pytest.raises(ConfigError, match="more than once"):
        write_report(["other", "other"], storage=str(tmp_path))
    with pytest.raises(ConfigError, match="is not in"):
        write_report(["nobody"], storage=str(tmp_path))
    with pytest.raises(ConfigError, match="`out`"):
        write_report(["other"], storage=str(tmp_path), out=tmp_path / "no/such/folder.html")


def test_a_live_page_reloads_itself_until_the_run_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = store_run(tmp_path)
    tree = run.read_config()
    tree["train"]["num_steps"] = 400
    run.write_config(tree)
    out, seen = tmp_path / "live.html", []

    def sleep(seconds: float) -> None:  # training comes to its end meanwhile
        seen.append((seconds, 'http-equiv="refresh" content="7"' in out.read_text()))
        if len(seen) == 2:
            stored_runs.commit(run, 400, tmp_path / "scratch")

    monkeypatch.setattr(write.time, "sleep", sleep)
    follow(["digits-0001"], storage=str(tmp_path), out=out, every_s=7, say=lambda text: None)
    assert seen == [(7, True), (7, True)]
    assert 'http-equiv="refresh"' not in out.read_text()
    assert list(tmp_path.glob(".live*")) == []  # no half-written file stays


def test_the_table_of_a_sweep_has_mean_spread_stability_and_the_paper(tmp_path: Path):
    folder = store_sweep(tmp_path)
    table = grid_table(gather_sweep(folder))
    assert table.columns[-4:] == ["FID (paper)", "stable (paper)", "L_opt", "architecture"]
    plain, opt, strong = table.rows
    # values 14, 19 for plain; 22, 27 for opt: mean and sample standard deviation 5 / sqrt(2) = 3.5
    assert plain == ("none of them", "16.5 ± 3.5", "15.5 ± 3.5", *plain[3:])
    assert plain[3:] == ("0 of 2 (unstable at 100, 100)", "2 unstable", "253.1", "no", "no", "none of them")
    assert opt[1:-2] == ("24.5 ± 3.5", "23.5 ± 3.5", "2 of 2", "2 finished", "59.8", "yes")
    assert strong[1:-2] == ("30", "29", "1 of 1", "1 finished, 1 crashed", "-", "-")


def test_a_trials_hours_are_its_last_launch_or_if_longer_the_training_of_all_launches(tmp_path: Path):
    trial = next(trial for trial in gather_sweep(store_sweep(tmp_path)).trials if trial.state == "finished")
    assert trial.train_seconds == pytest.approx(20.0)  # 100 steps, 5 a second
    assert trial.hours == pytest.approx(2 * 1.0)  # two CPUs for the hour that it says
    ended = {**(trial.result or {}), "cost": {**trial.cost, "seconds": 3.0, "train_seconds": 30.0}}
    assert replace(trial, result=ended).hours == pytest.approx(2 * 20 / 3600)
    assert replace(trial, result=ended, run=None).hours == pytest.approx(2 * 30 / 3600)  # as recorded


def test_the_best_trial_of_a_sweep_is_a_stable_one(tmp_path: Path):
    text = text_of(sweep_page.sweep_page(store_sweep(tmp_path)))
    assert re.search(r"Best fid_small 22 opt-s0", text)  # plain-s0 has 14, and diverged
    assert "OutOfMemory: no room" in text


def test_a_sweep_of_a_thousand_trials_stays_under_5_mb(tmp_path: Path):
    # the same few runs, planned a thousand times over: what counts is what the page holds of each
    folder = store_sweep(tmp_path)
    sweep = gather_sweep(folder)
    page = sweep_html(replace(sweep, trials=sweep.trials[:4] * 250))
    assert page.count("<article>") == MAX_GRIDS
    assert len(page.encode()) < LIMIT_BYTES


def test_a_page_shows_the_newest_headline_there_is_and_warns_of_a_collapse_once(tmp_path: Path):
    run = store_run(tmp_path)
    assert [tile.label for tile in tiles(run_data.gather(run))][2] == "fid_small"  # an old run's only one
    folder = "evaluations/step-000000200"
    run.write_json(f"{folder}/fid_judge.json", {"value": 4.0, "heldout": 0.3, "noise": 55.0})
    spread = {"value": 0.42, "ratio": 0.42, "duplicates": 0.31, "collapsed": True}
    rows = {"ratio": 1.0, "duplicates": 0.01}
    run.write_json(f"{folder}/diversity.json", spread | {"heldout": rows, "noise": rows})
    found = {tile.label: tile for tile in tiles(run_data.gather(run))}
    assert found["fid_judge"].value == "4"
    assert "fid_small" not in found
    assert (found["Diversity"].value, found["Diversity"].kind) == ("collapsed", "bad")
    text = text_of(run_page(run))
    assert text.count("collapsed") == 1
    assert "pair distances 0.42 of real ones’" in text or "pair distances 0.42" in text
    assert "near-duplicates 0.31" in text
    run.write_json(f"{folder}/diversity.json", spread | {"collapsed": False, "heldout": rows, "noise": rows})
    assert "collapsed" not in text_of(run_page(run))
