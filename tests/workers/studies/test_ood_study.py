"""The study behind Table 3 on a stored checkpoint, its calls made in this process: what it stores, shows, refuses."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ebm_core import presets
from ebm_core.config import TrainConfig
from ebm_core.data import load
from ebm_core.errors import CheckpointError, ConfigError, DataError
from ebm_core.trainer import init_state
from orchestrator.cli import app
from orchestrator.evaluation.folder import ResultsFolder
from orchestrator.settings.job import EvaluationConfig
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.terminal.tables import print_table
from workers.calls import Here
from workers.evaluator import Evaluator
from workers.ood import main as scores_again
from workers.studies import ood, ood_sets, ood_study
from workers.studies.ood_study import OodOptions
from workers.studies.study import Asked

STEP, FOLDER = 4, "evaluations/step-000000004"


def evaluator(spoil: bool = False) -> Evaluator:
    """An untrained energy of digits."""
    cfg: TrainConfig = presets.digits_paper()
    model = init_state(cfg).ema
    if spoil:
        next(model.parameters()).data.fill_(float("nan"))
    return Evaluator(model, cfg, load(cfg.data, "train"), load(cfg.data, "test"), "0123456789abcdef")


def asked(evaluator: Evaluator, run: Run | None = None, seed: int = 0, **changes: Any) -> Asked[OodOptions]:
    """run: where the study stores; it stores nothing while it measures."""
    nowhere: Any = None
    return Asked(
        options=OodOptions(**{"limit": 120, **changes}),
        num_images=2,
        seed=seed,
        trained=evaluator.cfg.data,
        run_name="tiny",
        step=STEP,
        folder=nowhere if run is None else ResultsFolder(run, STEP),
        runner=Here(evaluator),
    )


@pytest.fixture(scope="module")
def plain() -> Evaluator:
    return evaluator()


@pytest.mark.parametrize("protocol", ood_sets.PROTOCOLS)
def test_every_score_and_its_origin_can_be_read_from_what_is_stored(plain, tmp_path: Path, capsys, protocol):
    run = RunStore(str(tmp_path)).run("tiny")
    part = asked(plain, run, seed=3, protocol=protocol)
    document = ood_study.measure(part)
    ood_study.store(part, document)
    name = "ood" if protocol == "strict" else "ood_paper_code"
    assert sorted(info.key for info in run.list()) == [f"{FOLDER}/{name}-energies.parquet", f"{FOLDER}/{name}.png"]
    document = json.loads(json.dumps(document))
    parquet = run.read_bytes(f"{FOLDER}/{name}-energies.parquet")
    assert document["energies"] == {
        "file": f"{name}-energies.parquet",
        "sha256": hashlib.sha256(parquet).hexdigest(),
    }
    scores_again([str(tmp_path / "tiny" / FOLDER / document["energies"]["file"])])
    again = json.loads(capsys.readouterr().out)
    assert again["metric"] == name
    assert (again["seed"], again["checkpoint_digest"]) == (3, "0123456789abcdef")
    assert again["protocol"]["name"] == document["protocol"]["name"] == protocol
    assert again["value"] == document["value"]
    for key, one in again["sets"].items():
        source = document["sets"][key].pop("source")
        assert one == document["sets"][key]
        assert source["num_images"] == one["num_images"] == 120
        assert len(source["data_fingerprint"]) == 64
    assert np.asarray(Image.open(io.BytesIO(run.read_bytes(f"{FOLDER}/{name}.png")))).std() > 0


def test_stored_energies_are_the_models_at_the_images_that_the_rows_name(plain, tmp_path: Path):
    columns = ood_study.measure(asked(plain, sets=("digits",)))["columns"]
    for name in ("heldout", "digits"):  # the same images twice
        expected = plain.energies(plain.heldout.fetch(torch.from_numpy(columns[name]["image"])))
        assert np.array_equal(columns[name]["energy"], expected)
    assert ood.report(columns, {})["sets"]["digits"]["auroc"] == 0.5


def test_shards_of_any_order_make_one_result(plain, monkeypatch):
    whole = ood_study.measure(asked(plain, sets=("interpolation",)))
    monkeypatch.setattr(ood_study, "OOD_SHARD", 50)
    parts = ood_study.measure(asked(plain, sets=("interpolation",)))
    np.testing.assert_allclose(
        whole["columns"]["interpolation"]["energy"], parts["columns"]["interpolation"]["energy"], rtol=1e-5
    )
    assert np.array_equal(whole["columns"]["heldout"]["image"], parts["columns"]["heldout"]["image"])


@pytest.mark.parametrize("width", [80, 160])
def test_the_tables_are_whole_at(plain, width, capsys, monkeypatch):
    columns = {name: plain_columns(i) for i, name in enumerate(("heldout", *ood.PUBLISHED))}
    document = ood.report(columns, ood.PUBLISHED) | {
        "protocol": {"name": "paper_code"}, "dataset": "cifar10", "seed": 0, "num_inside": 10_000
    }  # fmt: skip
    monkeypatch.setattr("orchestrator.terminal.tables.open_console", lambda: Console(width=width, highlight=False))
    shown = ood_study.tables(document, 20_000)
    for table in shown:
        print_table(table.title, table.columns, table.rows)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name, one in document["sets"].items():
        low, high = one["intervals"]["auroc"]
        row = next(line for line in text.splitlines() if line.startswith(f"{name} ") and f"{low:.3f}-" in line)
        for piece in (f"{one['auroc']:.3f}", f"{low:.3f}-{high:.3f}", f"{one['published_auroc']:.2f}", "30"):
            assert piece in row
    assert "protocol paper_code" in shown[0].title
    assert "cifar100 is the sound number" in shown[0].note
    assert "Fewer than 100 images" in shown[0].note


def plain_columns(shift: float) -> ood.Columns:
    values = np.random.default_rng(int(shift)).normal(shift, 1, 30)
    return dict.fromkeys(ood.COLUMNS, values) | {"highest": np.ones(30)}


def test_weights_that_are_not_finite_are_one_line():
    with pytest.raises(CheckpointError, match="120 of 120 energies are not finite: use an earlier checkpoint"):
        ood_study.measure(asked(evaluator(spoil=True)))


def test_sets_are_refused_before_anything_is_measured(plain, tmp_path: Path):
    for changes, kind, said in (
        ({"sets": ("noise", "noise")}, ConfigError, "each set once"),
        ({"sets": ("nothing",)}, ConfigError, "known are"),
        ({"protocol": "paper_code", "cifar100_fault": True}, ConfigError, "cifar100 must be among the sets"),
        ({"sets": (f"mine={tmp_path}",)}, DataError, "ood.sets = mine: .*no images"),
        ({"sets": ("mine=gone",)}, DataError, "ood.sets = mine: no folder /.*/gone"),
        (
            {"sets": (f"svhn={tmp_path}",)},
            DataError,
            r"ood.sets = svhn: .*no test_32x32.mat in .*; get the files with",
        ),
    ):
        with pytest.raises(kind, match=said):
            ood_study.describe(asked(plain, **changes))


def test_colour_photos_are_seen_in_grey_by_a_grey_model(plain, tmp_path: Path):
    for i in range(3):
        Image.new("RGB", (20, 16), (80 * i, 0, 80 * i)).save(tmp_path / f"{i}.png")
    document = ood_study.measure(asked(plain, sets=(f"mine={tmp_path}",)))
    assert document["sets"]["mine"]["num_images"] == 3
    assert document["sets"]["mine"]["value_range"] == [0.5 / 256, 66.5 / 256]  # 160 (0.299 + 0.114)


def test_the_faulty_reader_is_shown_beside_the_sound_one(plain, monkeypatch):
    monkeypatch.setattr(ood_sets, "open_source", lambda which: plain.train)
    request = {"protocol": "paper_code", "cifar100_fault": True, "sets": ("cifar100",)}
    sets = ood_study.measure(asked(plain, **request))["sets"]
    assert list(sets) == ["cifar100", "cifar100_fault"]
    assert sets["cifar100"]["auroc"] != sets["cifar100_fault"]["auroc"]


def test_the_command_names_weights_and_data_and_how_to_score_again(plain, tmp_path: Path, capsys, monkeypatch):
    run = RunStore(str(tmp_path)).run("tiny")
    document = ood_study.measure(asked(plain))
    ood_study.store(asked(plain, run), document)
    given = []

    def score(where: str, request: EvaluationConfig, **_: object):
        given.append((where, request.studies))
        return run, STEP, {"ood": document}

    monkeypatch.setattr("orchestrator.evaluation.evaluate.evaluate", score)
    arguments = [
        "evaluate",
        "tiny",
        "--metrics",
        "ood",
        "ood.sets=noise",
        "ood.protocol=strict",
        "ood.limit=120",
    ]
    monkeypatch.setattr("sys.argv", ["ebm", *arguments])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert not end.value.code
    assert given == [("tiny", {"ood": OodOptions(sets=("noise",), limit=120, protocol="strict")})]
    lines = capsys.readouterr().out.splitlines()
    fingerprint = document["data_fingerprint"][:12]
    assert lines[0] == f"run tiny, step 4, averaged weights 0123456789ab, data digits {fingerprint}"
    command, file = lines[-1].rsplit(maxsplit=1)
    assert command.endswith("python -m workers.ood")
    scores_again([file])  # the path that is printed is the file's
    assert json.loads(capsys.readouterr().out)["value"] == document["value"]
