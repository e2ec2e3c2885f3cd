"""`ebm evaluate` on a stored run: one set of numbers whatever the actors, and one line for what does not fit."""

import hashlib
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from ebm_core import checkpoint
from ebm_core.config import DataConfig
from ebm_core.errors import CheckpointError, ConfigError, DataError
from ebm_core.manifest import describe, manifest_bytes
from ebm_core.trainer import init_state
from orchestrator.cluster.connection import ClusterError
from orchestrator.cluster.pool import Pool
from orchestrator.evaluation.evaluate import Evaluation, evaluate, store_results, tables
from orchestrator.records import provenance, runs, scores
from orchestrator.settings.job import EvaluationConfig, core_config, job_preset
from orchestrator.settings.overrides import override, override_studies
from orchestrator.storage.run_store import Run, RunStore
from workers.calls import Here
from workers.evaluator import PUBLISHED
from workers.studies import ood

STEP = 4


def store_run(root: Path, *settings: str) -> Run:
    """A run with one checkpoint of an untrained energy."""
    job = override(job_preset("digits_paper"), [f"storage={root}", "name=tiny", "sampler.generate_steps=2", *settings])
    cfg = core_config(job)
    store = RunStore(str(root))
    runs.create(store, job, provenance.provenance(job))
    run = store.run("tiny")
    state = replace(init_state(cfg), step=STEP)
    with tempfile.TemporaryDirectory() as temp:
        names = checkpoint.write_shared(state, cfg, Path(temp)) + checkpoint.write_shards(state, Path(temp))
        attempt = run.new_attempt()
        for name in names:
            run.put_checkpoint_file(STEP, attempt, Path(temp) / name)
        run.commit(STEP, attempt, manifest_bytes(describe(Path(temp), names), STEP))
    return run


METRICS = ("fid_small", "kid_small", "precision_recall_small", "ood", "chains")
SMALL = (
    "ood.sets=interpolation,noise,objects", "ood.limit=700",
    "chains.num_chains=3", "chains.num_steps=20", "chains.descent_steps=20",
)  # fmt: skip


def request(*settings: str, metrics: tuple[str, ...] = METRICS, num_actors: int | None = 2) -> EvaluationConfig:
    plain = EvaluationConfig(metrics=metrics, num_images=150, num_actors=num_actors)
    asked = [setting for setting in SMALL if setting.partition(".")[0] in metrics]
    return override_studies(plain, [*asked, *settings])


def stored(run: Run) -> dict[str, bytes]:
    return {info.key: run.read_bytes(info.key) for info in run.list("evaluations/")}


SIZES = {"heldout": 297, "interpolation": 297, "noise": 297, "objects": 700}


@pytest.mark.cluster
def test_one_actor_and_two_store_the_same_bytes_and_again_overwrites(cluster, tmp_path: Path):
    run = store_run(tmp_path)
    found_run, step, found = evaluate("tiny", request(), storage=str(tmp_path))
    assert (found_run.uri, step) == (run.uri, STEP)
    first = stored(run)
    kinds = ("descent-pool", "descent", "no_transitions-pool", "no_transitions")
    pictures = [*(f"chains-{kind}.png" for kind in kinds), "chains.json", "chains.png"]
    names = ["fid_small.json", "kid_small.json", "ood-energies.parquet", "ood.json", "ood.png"]
    assert [key.rpartition("/")[2] for key in sorted(first)] == [*pictures, *names, "precision_recall_small.json"]
    evaluate("tiny", request(num_actors=1), storage=str(tmp_path))
    assert stored(run) == first

    energies = first[f"evaluations/step-{STEP:09d}/ood-energies.parquet"]
    columns = ood.columns_of(pq.read_table(io.BytesIO(energies)))
    assert {name: len(c["energy"]) for name, c in columns.items()} == SIZES
    again = ood.report(columns, {})
    for name, one in again["sets"].items():
        one["source"] = found["ood"]["sets"][name]["source"]
    assert {key: found["ood"][key] for key in again} == again
    written = json.loads(first[f"evaluations/step-{STEP:09d}/ood.json"])
    assert written["energies"]["sha256"] == hashlib.sha256(energies).hexdigest()
    assert (written["protocol"]["name"], written["seed"]) == ("strict", 0)
    assert np.asarray(Image.open(io.BytesIO(first[f"evaluations/step-{STEP:09d}/ood.png"]))).std() > 0

    assert scores.read_scores(run, STEP).keys() == found.keys()
    assert found["chains"]["distance"] == "fid_judge"  # digits have labels
    assert found["chains"]["heldout"].keys() >= {"fid_judge", "fid_small", "class_score"}
    plain, outside, others, chains, memory = tables(found, STEP)
    assert "fid_judge" in chains.columns
    assert [row[0] for row in plain.rows][:3] == ["fid_small", "kid_small", "precision (small)"]
    assert [row[:2] for row in outside.rows] == [(name, str(SIZES[name])) for name in list(SIZES)[1:]]
    assert [row[0] for row in others.rows] == ["interpolation", "noise", "objects"]
    assert "protocol strict, step 4, seed 0: 297 held-out digits images" in outside.title
    assert [row[:2] for row in chains.rows[:2]] == [("real, held out", "-"), ("no_transitions", "2")]
    assert [row[:3] for row in memory.rows] == [("no_transitions", "no", "yes"), ("descent", "no", "no")]


@pytest.mark.full
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("settings", "asked", "kind", "said"),
    [
        ((), request("ood.sets=svhn", metrics=("classifier", "ood")), DataError, "no test_32x32.mat"),
        ((), request("ood.sets=noise,noise"), ConfigError, "each set once"),
        ((), request("ood.sets=nothing"), ConfigError, "known are"),
        ((), request("ood.protocol=paper_code", "ood.cifar100_fault=true"), ConfigError, "cifar100 must be among"),
        ((), request("ood.sets=mine=gone", metrics=("ood",)), DataError, "ood.sets = mine: no folder /.*/gone"),
        ((), request(num_actors=3), ClusterError, "this Ray has 2 CPUs"),
        (("data.condition=label",), request(metrics=("ood",)), ConfigError, "conditional"),
        ((), request(metrics=("composition",)), ConfigError, "condition is none"),
        ((), request("chains.transition_every=5", metrics=("chains",)), ConfigError, "augment.enabled=false"),
    ],
)
def test_what_does_not_fit_is_one_line_and_stores_nothing(cluster, tmp_path: Path, settings, asked, kind, said):
    run = store_run(tmp_path, f"data.root={tmp_path}", *settings)
    with pytest.raises(kind, match=said) as error:
        evaluate("tiny", asked, storage=str(tmp_path))
    assert type(error.value) is kind  # not Ray's own, whose text is a traceback
    assert stored(run) == {}


def test_steps_and_runs_that_are_not_there(tmp_path: Path):
    run = store_run(tmp_path)
    with pytest.raises(ConfigError, match=r"`step` 9: run tiny has 4"):
        evaluate("tiny", request(), storage=str(tmp_path), step=9)
    with pytest.raises(ConfigError, match="there are tiny"):
        evaluate("other", request(), storage=str(tmp_path))
    settings = run.read_config()
    run.write_config({"name": "tiny"})
    with pytest.raises(ConfigError, match="data = None: must be a section"):
        evaluate("tiny", request(), storage=str(tmp_path))
    run.write_config(settings)
    for info in list(run.list("checkpoints/")):
        run.store.objects.delete(f"tiny/{info.key}")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        evaluate("tiny", request(), storage=str(tmp_path))


def test_a_ray_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch):
    def too_busy(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nmore")

    run = store_run(tmp_path)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_busy)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=r"^Ray could not be reached or started: The current node timed out.*$"):
        evaluate("tiny", request(), storage=str(tmp_path))
    assert stored(run) == {}


def test_a_kill_between_two_files_leaves_every_result_whole_and_belonging_to_its_energies(tmp_path, monkeypatch):
    """The driver writes pictures and energies first and the result last, each at once or not at all."""
    document = {
        "metric": "ood", "protocol": {"name": "strict"}, "columns": {}, "seed": 0, "checkpoint_digest": "a",
        "dataset": "digits", "data_fingerprint": "b", "sets": {"noise": {"auroc": 0.5, "published_auroc": None}},
    }  # fmt: skip
    columns = {name: dict.fromkeys(ood.COLUMNS, np.arange(4.0)) for name in ("heldout", "noise")}
    run = RunStore(str(tmp_path)).run("tiny")
    here: Here[Any] = Here(None)
    asked = Evaluation(
        request=request(metrics=("ood",)), seed=0, run=run, step=STEP, trained=DataConfig(), runner=here
    )  # fmt: skip
    found = document | {"columns": columns}
    store_results(asked, {"ood": found})
    before = found["energies"]["sha256"]

    def killed(self: Run, key: str, data: bytes) -> None:
        raise KeyboardInterrupt(key)

    monkeypatch.setattr(Run, "write_bytes", killed)
    other = document | {"columns": {**columns, "noise": dict.fromkeys(ood.COLUMNS, np.arange(9.0))}}
    with pytest.raises(KeyboardInterrupt, match="energies"):  # the first thing that is written
        store_results(asked, {"ood": other})
    kept = run.read_json("evaluations/step-000000004/ood.json")
    parquet = run.read_bytes(f"evaluations/step-000000004/{kept['energies']['file']}")
    assert kept["energies"]["sha256"] == before == hashlib.sha256(parquet).hexdigest()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("chains.num_chains=1", "chains.num_chains = 1: must lie in 2 to 100000"),
        ("chains.num_steps=19", "chains.num_steps = 19: must lie in 20 to 1000000"),
        ("chains.descent_steps=19", "chains.descent_steps = 19: must lie in 20 to 1000000"),
        ("chains.transition_every=0", "chains.transition_every = 0: must be at least 1, or null"),
        ("chains.num_steps=many", "chains.num_steps = 'many': must be a whole number"),
        ("chains.num_step=30", r"unknown setting 'chains.num_step': did you mean chains.num_steps\?"),
        ("chains=30", "setting 'chains' is a section: set one of chains.num_chains"),
        ("ood.limit=1", "ood.limit = 1: must be at least 2, or null"),
        ("ood.protocol=paper", "ood.protocol = 'paper': must be one of strict, paper_code"),
        ("ood.cifar100_fault=true", "needs ood.protocol=paper_code"),
    ],
)
def test_settings_of_studies_are_checked_before_anything_starts(setting: str, said: str):
    with pytest.raises(ConfigError, match=said):
        request(setting)


def test_the_rest_of_a_request_is_checked_as_the_settings_of_a_job_are():
    for sizes, said in (({"num_images": 1}, "must lie in 2"), ({"num_actors": 0}, "must lie in 1 to 4096, or null")):
        with pytest.raises(ConfigError, match=said):
            EvaluationConfig(metrics=METRICS, **sizes)
    with pytest.raises(ConfigError, match=r"evaluation.metrics = 'fit_small': unknown; .*did you mean fid_small\?"):
        request(metrics=("fit_small",))
    with pytest.raises(ConfigError, match=r"setting 'ood.limit=9': ood is not among the metrics that are asked for"):
        override_studies(request(metrics=("chains",)), ["ood.limit=9"])


def test_a_request_for_nothing_is_refused_before_the_run_is_looked_up(tmp_path: Path):
    with pytest.raises(ConfigError, match="known: energy_gap"):
        evaluate("tiny", request(metrics=()), storage=str(tmp_path))


def test_published_scores_are_named_by_their_count_and_stand_beside_the_papers():
    def document(value: float, **more) -> dict:
        return {"value": value, "heldout": 3.0, "noise": 300.0, "num_images": 5000, "seed": 0, **more}

    notes = ["fid_5k: of 5000 images; not comparable"]
    found = {
        "fid": document(50.0, paper=PUBLISHED["fid"], notes=notes),
        "inception_score": document(6.0, paper=PUBLISHED["inception_score"], notes=[]),
        "fid_medium": document(9.0, notes=[]),
        "precision_recall": document(0.5, **dict.fromkeys(("precision", "recall", "density", "coverage"), 0.5))
        | dict.fromkeys(("heldout", "noise"), dict.fromkeys(("precision", "recall", "density", "coverage"), 0.25)),
    }
    (table,) = tables(found, STEP)
    assert table.columns == ("score", "samples", "real, held out", "noise", "paper")
    assert table.rows[0] == ("fid_5k", "50", "3", "300", "35.4")
    assert table.rows[1] == ("inception_score", "6", "3", "300", "7.58")
    assert table.rows[2] == ("fid_medium", "9", "3", "300", "-")
    assert table.rows[3] == ("precision", "0.5", "0.25", "0.25", "-")
    assert table.note.splitlines()[0] == notes[0]
    assert "paper, fid_5k: Table 1" in table.note
    (plain,) = tables({"fid_medium": found["fid_medium"]}, STEP)
    assert plain.columns == ("score", "samples", "real, held out", "noise")


class Dying:
    """Squares numbers; the process dies the first time that it meets 3."""

    def call(self, number: int, folder: str) -> int:
        import os

        mark = Path(folder) / "died"
        if number == 3 and not mark.exists():
            mark.touch()
            os._exit(1)
        if number < 0:
            raise DataError("negative")
        return number**2


@pytest.mark.cluster
def test_an_actor_that_dies_is_replaced_and_its_call_made_again(cluster, tmp_path: Path):
    heard: list[str] = []
    calls = {n: (n, str(tmp_path)) for n in range(7)}
    with Pool(lambda: ray.remote(num_cpus=1)(Dying).remote(), 2, heard.append) as pool:
        assert pool.run(calls) == {n: n**2 for n in range(7)}
        assert heard == ["a scoring actor died; its shard is made again"]
        with pytest.raises(DataError, match=r"^negative$"):
            pool.run({0: (-1, str(tmp_path))})


class Dead:
    def call(self) -> None:
        import os

        os._exit(1)


@pytest.mark.full
@pytest.mark.cluster
def test_actors_that_keep_dying_end_the_evaluation(cluster):
    with Pool(lambda: ray.remote(num_cpus=1)(Dead).remote(), 1) as pool, pytest.raises(ClusterError, match="4 scoring"):
        pool.run({0: ()})
