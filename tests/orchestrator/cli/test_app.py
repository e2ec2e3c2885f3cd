"""The command as a person meets it: answers, and one line with exit status 2 for anything wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ebm_core.config import to_tree
from ebm_core.errors import DivergenceError
from orchestrator.cli import app
from orchestrator.records import provenance, runs
from orchestrator.settings.job import job_preset, parse
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import RunStore

ROOT = Path(__file__).parents[3]


def ebm(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""}
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of `ebm` with these words, inside this process."""
    monkeypatch.setattr(sys, "argv", ["ebm", *words])
    with pytest.raises(SystemExit) as end:
        app.main()
    return int(end.value.code or 0)


def test_help_names_every_command_in_under_a_second(tmp_path: Path):
    ebm("--help", cwd=tmp_path)  # compile first
    started = time.monotonic()
    answer = ebm("--help", cwd=tmp_path)
    assert answer.returncode == 0
    assert all(command in answer.stdout for command in ("train", "sample", "runs", "config", "doctor", "data"))
    heavy = {"torch", "ray", "boto3", "pyarrow", "pydantic"}
    code = f"import sys, orchestrator.cli.app; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert time.monotonic() - started < 5.0  # generous for a busy machine; what costs seconds is not even imported


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "digits_paper", "sampler.num_stesp=3"], "did you mean sampler.num_steps?"),
        (["train", "digitz"], "did you mean digits?"),
        (["train", "cifar10", "data.root=nowhere"], "ebm data download cifar10 data.root="),
        (["train", "digits_paper", "storage=file.txt"], "file.txt"),
        (["train", "digits_paper", "storage=ftp://x"], "ftp"),
        (["train", "digits_paper", "--address", "127.0.0.1:1"], "no Ray answers at 127.0.0.1:1"),
        (["sample", "nothing"], "run 'nothing' is not in"),
        (["sample", "nothing", "--count", "0"], "--count"),
        (["sample", "x/nothing", "--out", "no/such/folder.png"], "does not exist"),
        (["config", "digits_paper", "seed"], "PATH=VALUE"),
        (["train"], "PRESET"),
        (["train", "digits_paper", "--no-such-option"], "--no-such-option"),
        (["nonsense"], "nonsense"),
        (["data", "check", "nothing"], "'nothing'"),
        (["data", "download", "nothing"], "'nothing'"),
    ],
)
def test_a_wrong_word_is_one_line_and_status_two_and_leaves_nothing_behind(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file.txt").write_text("kept")
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ebm: ")
    assert error.count("\n") == 1
    assert said in error
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file.txt"]


def test_a_process_of_its_own_shows_no_traceback(tmp_path: Path):
    answer = ebm("train", "digits_paper", "train.batch_size=many", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr == "ebm: train.batch_size = 'many': must be a whole number\n"


def test_config_as_json_is_the_job_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run_main(monkeypatch, "config", "digits_paper", "seed=3", "--json") == 0
    assert parse(json.loads(capsys.readouterr().out)) == override(job_preset("digits_paper"), ["seed=3"])


def test_config_prints_each_section(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run_main(monkeypatch, "config", "cifar10", "sampler.num_steps=60") == 0
    assert 'sampler:\n  kind: "langevin"\n  num_steps: 60\n' in capsys.readouterr().out


def stored_run(folder: Path, *settings: str) -> None:
    job = override(
        job_preset("digits_paper"), ["name=kept", f"storage={folder}/runs", f"data.root={folder}/data", *settings]
    )
    RunStore(job.storage).run("kept").write_config(to_tree(job))


def test_a_run_with_other_settings_is_refused_and_the_difference_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    stored_run(tmp_path)
    before = (tmp_path / "runs" / "kept" / "config.json").read_bytes()
    assert run_main(monkeypatch, "train", "digits_paper", "name=kept", "sampler.step_size=7", "seed=5") == 2
    said = capsys.readouterr().err
    assert "sampler.step_size was 2.0, now 7.0" in said
    assert "seed was 0, now 5" in said
    assert (tmp_path / "runs" / "kept" / "config.json").read_bytes() == before


def test_a_damaged_config_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    stored_run(tmp_path)
    (tmp_path / "runs" / "kept" / "config.json").write_text("{")
    assert run_main(monkeypatch, "train", "digits_paper", "name=kept") == 2
    assert "config.json is damaged" in capsys.readouterr().err
    assert run_main(monkeypatch, "runs") == 0
    assert "damaged" in capsys.readouterr().out


def test_runs_lists_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, "runs") == 0
    assert "no runs in ./runs" in capsys.readouterr().out
    stored_run(tmp_path, "train.num_steps=77")
    assert run_main(monkeypatch, "runs") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "kept" in line)
    assert "0/77" in line
    assert "unfinished" in line


def test_a_run_without_a_checkpoint_cannot_be_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    stored_run(tmp_path)
    assert run_main(monkeypatch, "sample", "kept") == 2
    assert "no checkpoint yet" in capsys.readouterr().err
    assert run_main(monkeypatch, "sample", "kept", "--checkpoint", "5") == 2
    assert "no checkpoint yet" in capsys.readouterr().err
    assert run_main(monkeypatch, "sample", "kept", "--checkpoint", "last") == 2
    assert "last is neither the number of a training step nor the word best" in capsys.readouterr().err


def test_divergence_has_its_own_status(capsys: pytest.CaptureFixture[str]):
    assert app._explain(DivergenceError(7, 1e9, 10.0)) == 3
    assert capsys.readouterr().err.startswith("ebm: diverged at step 7: ")


def test_a_fault_of_the_program_is_not_dressed_up_as_bad_input():
    with pytest.raises(ZeroDivisionError):
        app._explain(ZeroDivisionError())


def test_numbered_names_are_the_next_free_ones(tmp_path: Path):
    store = RunStore(str(tmp_path))
    job = override(job_preset("digits_paper"), [f"storage={tmp_path}"])
    names = [runs.create_numbered(store, job, "digits", {}).name for _ in range(3)]
    assert names == ["digits-0001", "digits-0002", "digits-0003"]
    store.run("digits-0041").write_config({})
    store.run("digits-other").write_config({})
    assert runs.create_numbered(store, job, "digits", {}).name == "digits-0042"


HOME_WORDS = [
    ["config", "cifar10"],
    ["train", "cifar10"],
    ["profile", "cifar10"],
    ["sweep", "table2"],
    ["data", "check", "cifar10"],
    ["data", "prepare", "cifar10", "--to", "prepared"],
    ["clone", "runs/kept"],
]


@pytest.mark.parametrize("words", HOME_WORDS, ids=" ".join)
def test_a_home_folder_in_data_root_is_the_same_folder_in_every_command(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # Each command says which folder it looks in: of data that is not there, in the line that ends it.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    stored_run(tmp_path, "data.name=cifar10", "data.image_size=32", "data.channels=3")
    status = run_main(monkeypatch, *words, "data.root=~/data")
    said = "".join(capsys.readouterr())
    assert status == (0 if words[0] == "config" else 2)
    assert f"{tmp_path}/home/data" in said
    assert "~" not in said


def test_what_is_downloaded_is_said_to_lie_where_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, "data", "download", "digits", "data.root=place") == 0
    said = capsys.readouterr().out
    assert said == "digits: nothing to download, the images come with the program\n"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("ebm_core.data.catalog._fetch", lambda source, root: root.mkdir())
    assert run_main(monkeypatch, "data", "download", "mnist", "data.root=place") == 0
    assert capsys.readouterr().out == f"mnist: files are in {tmp_path / 'place'}\n"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("train.num_steps=5", "train.num_steps=5"),
        ("storage=s3://key:secret@bucket/x", "storage=s3://***@bucket/x"),
        ("AWS_SECRET_ACCESS_KEY=abc", "AWS_SECRET_ACCESS_KEY=***"),
        ("--token=abc", "--token=***"),
    ],
)
def test_provenance_holds_no_secret_of_the_command_line(word: str, shown: str):
    assert provenance.without_secrets(word) == shown
