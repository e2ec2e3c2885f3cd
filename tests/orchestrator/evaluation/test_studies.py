"""The table of studies is the only list of them: what settings and commands know of a study, they read there."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_type_hints

import pytest

from ebm_core.config import to_tree
from ebm_core.errors import ConfigError
from orchestrator.cli import app
from orchestrator.records import scores
from orchestrator.settings.job import EvaluationConfig, job_preset
from orchestrator.settings.overrides import leaves, override, override_studies
from tests.orchestrator.evaluation.test_evaluate import STEP, store_run
from workers.evaluator import Evaluator
from workers.studies import STUDIES
from workers.studies.ood_study import OodOptions

ROOT = Path(__file__).parents[3]

BRIGHTNESS = '''
"""A study that could be anybody's: how bright the first generated images are."""

from dataclasses import dataclass

from ebm_core.config import require
from workers.calls import call
from workers.evaluator import Evaluator
from workers.studies.study import Asked, Document, Study
from workers.tables import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class BrightnessOptions:
    """Which images are looked at."""

    num_images: int = 4
    """Generated images that are looked at, the first ones of the seed."""

    def __post_init__(self) -> None:
        require(self.num_images >= 1, "brightness.num_images", self.num_images, "must be at least 1")


def brightness(judge: Evaluator, count: int, seed: int) -> Document:
    return {
        "metric": "brightness",
        "value": float(judge.grid(count, seed).double().mean()),
        "num_images": count,
        **judge.provenance("nothing"),
    }


STUDY = Study(
    options=BrightnessOptions,
    measure=lambda asked: asked.one(call(brightness, asked.options.num_images, asked.seed)),
    tables=lambda document, step: [Table("brightness", ("step", "mean"), [(str(step), f"{document['value']:.3f}")])],
)
'''


@pytest.fixture
def with_brightness(tmp_path: Path):
    """Our packages with one study more, by one new file and an entry in the table; runs `ebm` there, on a Ray of its
    own."""
    code = tmp_path / "code"
    shutil.copytree(ROOT / "workers", code / "workers", ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("ebm_core", "orchestrator"):
        (code / package).symlink_to(ROOT / package)
    (code / "workers/studies/brightness.py").write_text(BRIGHTNESS)
    table = code / "workers/studies/__init__.py"
    text = table.read_text()
    for before, after in (
        ("import chains_study", "import brightness, chains_study"),
        (
            "STUDIES: dict[str, Study[Any]] = {",
            'STUDIES: dict[str, Study[Any]] = {\n    "brightness": brightness.STUDY,',
        ),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    table.write_text(text)
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: a socket's path has at most 107 characters
    own = {"PYTHONPATH": str(code), "RAY_ADDRESS": "", "RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"}

    def ebm(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator.cli", *words]
        return subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True, timeout=280)

    yield ebm
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.full
@pytest.mark.cluster
def test_a_study_is_one_file_and_one_entry_from_the_command_line_to_its_result(with_brightness, tmp_path: Path):
    run = store_run(tmp_path / "runs")
    done = with_brightness("evaluate", "tiny", "brightness.num_images=3", "--metrics", "brightness", "--actors", "1")
    assert done.returncode == 0, done.stderr
    document = scores.read_scores(run, STEP)["brightness"]
    checkpoint = run.fetch_checkpoint(STEP, tmp_path / "checkpoint")
    expected = float(Evaluator.from_checkpoint(checkpoint).grid(3).double().mean())
    assert (document["value"], document["num_images"], document["dataset"]) == (expected, 3, "digits")
    assert f"{expected:.3f}" in done.stdout

    wrong = with_brightness("evaluate", "tiny", "brightness.num_image=3", "--metrics", "brightness")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "unknown setting 'brightness.num_image': did you mean brightness.num_images?" in wrong.stderr
    beside = with_brightness("config", "digits", "evaluation.metrics=brightness", "evaluation.brightness.num_images=5")
    assert beside.returncode == 0, beside.stderr
    assert "  brightness:\n    num_images: 5" in beside.stdout


def test_each_study_of_the_table_has_its_section_of_settings_and_no_other_is_there():
    hints = get_type_hints(EvaluationConfig)
    assert {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)} == {
        name: study.options for name, study in STUDIES.items()
    }
    every = EvaluationConfig(metrics=tuple(STUDIES))
    assert every.studies == {name: study.options() for name, study in STUDIES.items()}
    for name in STUDIES:
        with pytest.raises(ConfigError, match=f"known are .*{name}"):
            EvaluationConfig(metrics=("no_such_metric",))


def test_a_setting_of_a_study_reaches_scoring_beside_training_and_by_command_alike():
    job = override(job_preset("digits"), ["evaluation.metrics=chains,ood", "evaluation.chains.num_steps=3000"])
    command = override_studies(EvaluationConfig(metrics=("chains", "ood")), ["chains.num_steps=3000"])
    assert job.evaluation.studies == command.studies
    assert command.studies["chains"].num_steps == 3000
    stored = json.loads(json.dumps(to_tree(job)))["evaluation"]
    assert stored["chains"] == {
        "num_chains": 64, "num_steps": 3000, "descent_steps": 1000, "transition_every": None
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"did you mean evaluation\.chains\.num_steps\?"):
        override(job, ["evaluation.chains.num_stepss=3000"])


def test_a_checkpoint_lacks_no_score_once_a_study_under_another_name_is_stored(tmp_path: Path):
    run = store_run(tmp_path)
    settings = ["evaluation.every=1", "evaluation.metrics=energy_gap,ood", "evaluation.ood.protocol=paper_code"]
    job = override(job_preset("digits_paper"), settings)
    assert job.evaluation.documents == ("energy_gap", "ood_paper_code")
    folder = f"evaluations/step-{STEP:09d}"
    for name in ("energy_gap", "ood"):
        run.write_json(f"{folder}/{name}.json", {})
    run.write_bytes(scores.ema_grid_key(STEP), b"")
    assert scores.unscored(run, job) == [STEP]
    run.write_json(f"{folder}/ood_paper_code.json", {})
    assert scores.unscored(run, job) == []


OLD = [
    (["--ood", "svhn=data", "--ood", "noise"], "ood.sets=svhn=data,noise", {"sets": ("svhn=data", "noise")}),
    (["--ood", "mine=a,b", "--ood", "noise"], 'ood.sets=["mine=a,b", "noise"]', {"sets": ("mine=a,b", "noise")}),
    (["--ood-images", "9"], "ood.limit=9", {"limit": 9}),
    (["--protocol", "paper_code"], "ood.protocol=paper_code", {"protocol": "paper_code"}),
    (
        ["--protocol", "paper_code", "--cifar100-fault"],
        "ood.protocol=paper_code ood.cifar100_fault=true",
        {"protocol": "paper_code", "cifar100_fault": True},
    ),
    (["--chains", "5"], "chains.num_chains=5", {"num_chains": 5}),
    (["--chain-steps", "30"], "chains.num_steps=30", {"num_steps": 30}),
    (["--descent-steps", "40"], "chains.descent_steps=40", {"descent_steps": 40}),
    (["--chain-transitions", "7"], "chains.transition_every=7", {"transition_every": 7}),
]


@pytest.fixture
def asked(monkeypatch):
    """The request that words of `ebm evaluate` become, and its exit status; nothing is scored."""

    def words(*more: str) -> tuple[EvaluationConfig | None, object]:
        given = []

        def score(where: str, request: EvaluationConfig, **_: object):
            given.append(request)
            raise KeyboardInterrupt

        monkeypatch.setattr("orchestrator.evaluation.evaluate.evaluate", score)
        monkeypatch.setattr("sys.argv", ["ebm", "evaluate", "tiny", "--metrics", "ood,chains", *more])
        with pytest.raises(SystemExit) as end:
            app.main()
        return given[0] if given else None, end.value.code

    return words


@pytest.mark.parametrize(("flags", "settings", "options"), OLD, ids=[" ".join(flags) for flags, _, _ in OLD])
def test_an_old_flag_is_the_setting_that_a_line_names(asked, capsys, flags, settings, options):
    request, _ = asked(*flags)
    study = settings.partition(".")[0]
    assert request.studies[study] == STUDIES[study].options(**options)
    note = capsys.readouterr().err
    names = ", ".join(dict.fromkeys(flag for flag in flags if flag.startswith("--")))
    assert note == f"note: {names}: old flags, gone after this release; write {settings}\n"
    told, _ = asked(*(settings.split() if "[" not in settings else [settings]))
    assert told == request
    assert capsys.readouterr().err == ""


def test_a_setting_wins_over_an_old_flag_and_a_flag_of_another_study_has_no_effect(asked, monkeypatch, capsys):
    request, _ = asked("ood.limit=5", "--ood-images", "9")
    assert request.studies["ood"] == OodOptions(limit=5)
    capsys.readouterr()
    request, _ = asked("--metrics", "energy_gap", "--chain-steps", "3000")  # as in 0.1
    assert request.studies == {}
    assert "write chains.num_steps=3000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chains.num_step=3"], "unknown setting 'chains.num_step': did you mean chains.num_steps?"),
        (["ood.set=noise"], "unknown setting 'ood.set': did you mean ood.sets?"),
        (["chains.num_steps=3"], "chains.num_steps = 3: must lie in 20 to 1000000"),
        (["chains.num_steps"], "write it as PATH=VALUE"),
        (["evaluation.chains.num_steps=30"], "did you mean chains.num_steps?"),
        (["composition.num_steps=3"], "composition is not among the metrics that are asked for"),
        (["--chain-steps", "3"], "chains.num_steps = 3: must lie in 20 to 1000000"),
    ],
)
def test_a_wrong_setting_of_a_study_is_one_line_and_status_two(asked, capsys, words, said):
    request, status = asked(*words)
    assert (request, status) == (None, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("ebm: ")
    assert said in lines[-1]
    assert len(lines) == 1 + (words[0].startswith("--"))


def test_every_option_of_a_study_says_what_it_means():
    from docs.config_reference import meanings

    for name, study in STUDIES.items():
        said = meanings(study.options)
        for path, _ in leaves(study.options):
            assert len(said.get(path, "")) > 5, f"{name}.{path} needs a text below its field"
