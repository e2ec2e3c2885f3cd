"""`ebm compose` on stored runs: the same bytes whatever the actors, and one line for what does not fit."""

import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ebm_core import checkpoint
from ebm_core.errors import CheckpointError
from ebm_core.manifest import describe, manifest_bytes
from ebm_core.trainer import init_state
from orchestrator.cli import app
from orchestrator.evaluation.compose import ComposeRequest, compose
from orchestrator.evaluation.evaluate import evaluate
from orchestrator.evaluation.evaluate import tables as evaluate_tables
from orchestrator.records import runs, scores
from orchestrator.settings.job import EvaluationConfig, core_config, job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import Run, RunStore
from workers.studies.composition import compose_tables

STEP = 3
SMALL = [
    "data.image_size=8",
    "data.limit=100",
    "model.kind=plain",
    "model.widths=4,8",
    "model.norm=none",
    "model.attention=false",
    "model.multiscale=false",
    "sampler.generate_steps=2",
    "buffer.capacity=64",
    "augment.enabled=false",
]


def store_run(root: Path, name: str, *settings: str, preset: str = "objects", spoil: bool = False) -> Run:
    """A run with one checkpoint of an untrained energy; spoil: its energies are NaN."""
    sizes = SMALL if preset == "objects" else ["model.widths=4,8", "sampler.generate_steps=2"]
    job = override(job_preset(preset), [f"storage={root}", f"name={name}", *sizes, *settings])
    cfg, store = core_config(job), RunStore(str(root))
    runs.create(store, job, {})
    run, state = store.run(name), replace(init_state(cfg), step=STEP)
    if spoil:
        with torch.no_grad():
            next(state.ema.parameters()).fill_(float("nan"))
    with tempfile.TemporaryDirectory() as temp:
        names = checkpoint.write_shared(state, cfg, Path(temp)) + checkpoint.write_shards(state, Path(temp))
        attempt = run.new_attempt()
        for file in names:
            run.put_checkpoint_file(STEP, attempt, Path(temp) / file)
        run.commit(STEP, attempt, manifest_bytes(describe(Path(temp), names), STEP))
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of objects: shapes (labels), left, sides (two attributes), free (no condition), bad (NaN); and of digits."""
    root = tmp_path_factory.mktemp("composed") / "runs"
    store_run(root, "shapes", "data.condition=label")
    store_run(root, "left", "data.condition=attributes", "data.attributes=left")
    store_run(root, "sides", "data.condition=attributes", "data.attributes=left,top")
    store_run(root, "free")
    store_run(root, "bad", spoil=True)
    store_run(root, "large", "data.image_size=16", "data.condition=attributes", "data.attributes=large")
    store_run(root, "digits", preset="digits_paper")
    RunStore(str(root)).run("bare").write_config(RunStore(str(root)).run("free").read_config())
    return root


def results(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("compositions/*"))}


@pytest.mark.full
@pytest.mark.cluster
def test_one_actor_and_two_store_the_same_bytes_beside_the_first_run(cluster, root: Path, tmp_path: Path):
    request = ComposeRequest(concepts=(f"shapes@{STEP}:cube", "left:left=1"), num_images=70, num_actors=2)
    document, written = compose(request, storage=str(root))
    first = results(root)
    assert [Path(place).suffix for place in written] == [".png", ".json"]
    assert [f"{root}/{name}" for name in first] == sorted(written)
    assert all(name.startswith(f"shapes/compositions/and-{document['name'][4:]}.") for name in first)
    compose(replace(request, num_actors=1), storage=str(root))
    assert results(root) == first

    stored = json.loads(next(content for name, content in first.items() if name.endswith(".json")))
    assert stored == document
    assert list(stored["rows"]) == ["composed", "shapes:cube alone", "left:left=1 alone", "noise"]
    assert {row["num_images"] for row in stored["rows"].values()} == {70}
    assert list(stored["judge"]["accuracy"]) == ["label=1", "left=1"]
    assert 0.15 < stored["judge"]["real_share"]["label=1"] < 0.25
    assert (stored["step_fraction"], stored["weights"], stored["num_steps"]) == (0.5, [1.0, 1.0], 2)
    (table,) = compose_tables(document)
    assert [row[0] for row in table.rows] == [
        *stored["rows"],
        "real, held out: have it",
        "real, held out: read rightly",
    ]

    out = tmp_path / "mine.png"
    request = replace(request, operation="not", num_images=5)
    document, written = compose(request, storage=str(root), out=out)
    assert written == [str(out), str(out.with_suffix(".json"))]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "mine.png"]
    assert results(root) == first
    assert np.asarray(Image.open(io.BytesIO(out.read_bytes()))).std() > 0


@pytest.mark.full
@pytest.mark.cluster
def test_energies_without_a_factor_are_drawn_and_not_scored_and_nan_stores_nothing(cluster, root: Path):
    before = results(root)
    document, written = compose(ComposeRequest(concepts=("free", "free"), num_images=3), storage=str(root))
    assert compose_tables(document) == []
    assert "rows" not in document
    for place in written:
        Path(place).unlink()
    with pytest.raises(CheckpointError, match="64 of 64 composed images or their energies are not finite"):
        compose(ComposeRequest(concepts=("free", "bad"), num_images=3), storage=str(root))
    assert results(root) == before


@pytest.mark.full
@pytest.mark.cluster
def test_a_run_of_several_attributes_composes_its_own(cluster, root: Path):
    request = EvaluationConfig(metrics=("composition",), num_images=10)
    run, _, found = evaluate("sides", request, storage=str(root))
    document = found["composition"]
    assert list(document["rows"]) == ["composed", "told all at once", "left alone", "top alone", "noise"]
    assert document["value"] == document["rows"]["composed"]["as_asked"]
    names = [info.key.rpartition("/")[2] for info in run.list("evaluations/")]
    assert names == ["composition.json", "composition.png"]
    assert scores.read_scores(run, STEP).keys() == {"composition"}
    assert len(evaluate_tables(found, STEP)) == 1


WRONG = [
    (["shapes:cube"], "1 energy given"),
    (["shapes:cube", "absent:left=1"], "run 'absent' is not in"),
    (["shapes:cube", "bare"], "no checkpoint yet"),
    (["shapes:cube@9", "left:left=1"], "one of the classes sphere, cube"),
    (["shapes@9:cube", "left:left=1"], "run shapes has the steps 3"),
    (["shapes@x:cube", "left:left=1"], "'x' is no training step"),
    (["shapes:pear", "left:left=1"], "shapes: 'pear'"),
    (["shapes:cube", "left:right=1"], "left: 'right=1': this energy knows left=0 or 1"),
    (["shapes:cube", "left"], "left: '': this energy needs left=0 or 1 too"),
    (["shapes:cube", "large:large=1"], "large is of images (3, 16, 16), shapes of (3, 8, 8)"),
    (["shapes:cube", "digits"], "digits is of images"),
    (["shapes:cube", "left:left=1", "--op", "xor"], "--op xor"),
    (["shapes:cube", "left:left=1", "--op", "not", "--constants", "paper"], "add --weight"),
    (["shapes:cube", "left:left=1", "--weight", "1"], "1 --weight given"),
    (["shapes:cube", "left:left=1", "--op", "or", "--sharpness", "-1"], "--sharpness -1"),
    (["shapes:cube", "left:left=1", "--num-images", "0"], "--num-images"),
    (["shapes:cube", "left:left=1", "--out", "no/such/place.png"], "folder that exists"),
    (["shapes:cube", "left:left=1", "--out", "picture.jpg"], "must be a .png file"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_wrong_word_is_one_line_and_status_two(root: Path, tmp_path: Path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ebm", "compose", *words, "--storage", str(root)])
    before = results(root)
    with pytest.raises(SystemExit) as end:
        app.main()
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1), error
    assert error.startswith("ebm: ")
    assert said in error
    assert results(root) == before
    assert list(tmp_path.iterdir()) == []


def test_an_address_where_no_ray_answers_is_one_line(root: Path, tmp_path: Path):
    # in a process of its own: one that holds a Ray already uses that
    words = ["compose", "shapes:cube", "left:left=1", "--address", "127.0.0.1:1", "--storage", str(root)]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("ebm: no Ray answers at 127.0.0.1:1")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
