"""Jobs without a cluster: what is refused before it travels, what a dashboard answers, what a log shows."""

import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray

from ebm_core.config import to_tree
from ebm_core.errors import ConfigError
from orchestrator.cli import app
from orchestrator.cli.words import check_words
from orchestrator.cluster import jobs as submit
from orchestrator.cluster.connection import ClusterError
from orchestrator.cluster.jobs import Job, Jobs, compare_versions, lost_jobs
from orchestrator.records import provenance, runs
from orchestrator.settings.job import job_preset, parse
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import RunStore
from orchestrator.training.start import cloned_job, resumed_job

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")

JOB = Job("run", "run-1", "RUNNING", "2026-01-01T00:00:00+00:00", None, "0.1.0", "ebm train digits_paper")


@pytest.fixture(autouse=True)
def no_cluster_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ebm", *words])
    with pytest.raises(SystemExit) as end:
        app.main()
    return int(end.value.code or 0)


@contextmanager
def dashboard(answers: dict[str, tuple[int, object]], posted: list[dict] | None = None) -> Iterator[str]:
    """A server that answers {path: (status, JSON)} and keeps what is posted; its address."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            status, tree = answers.get(self.path, (404, {}))
            body = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer()

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if posted is not None:
                posted.append(json.loads(body))
            self.answer()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def version(text: str) -> dict[str, tuple[int, object]]:
    return {"/api/version": (200, {"version": "4", "ray_version": text, "ray_commit": ""})}


def test_another_ray_on_the_cluster_is_one_line_that_names_both_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with dashboard(version("2.9.3")) as address:
        assert run_main(monkeypatch, "jobs", "--address", address) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"the cluster runs Ray 2.9.3, this machine {ray.__version__}: install ray==2.9.3 here" in error


def test_a_cluster_that_goes_away_is_one_short_line():
    with dashboard(version(ray.__version__)) as address:
        jobs = Jobs(address)
    with pytest.raises(ClusterError) as caught:
        jobs.list()
    assert str(caught.value) == f"no answer from {address}: check the address, and that the cluster's head runs"


@pytest.mark.parametrize(("theirs", "notes"), [("2.60.0", 0), ("2.60.7", 1)])
def test_a_patch_level_apart_is_a_remark_and_the_same_ray_is_none(theirs: str, notes: int):
    said: list[str] = []
    compare_versions("2.60.0", theirs, said.append)
    assert len(said) == notes


def test_a_cluster_with_a_token_says_which_variables_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with dashboard({"/api/version": (401, {})}) as address:
        assert run_main(monkeypatch, "jobs", "--address", address) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "RAY_AUTH_TOKEN_PATH" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jobs"], "--address http://HOST:8265"),
        (["jobs", "--address", "head:6379"], "--address head:6379: name the cluster's dashboard"),
        (["jobs", "--address", "http://me:word@head:8265"], "has a password in it"),
        (["stop", "run", "--address", "http://127.0.0.1:1"], "no answer from http://127.0.0.1:1: check the address"),
        (
            ["submit", "train", "digits_paper", "storage=./runs", "--address", "http://x:1"],
            "'./runs': nodes of the cluster",
        ),
        (["submit", "train", "digits_paper", "storage=/r", "data.root=data"], "data.root = 'data'"),
        (["submit", "train", "digits_paper", "storage=/r", "sampler.num_stesp=3"], "did you mean sampler.num_steps?"),
        (["submit", "train", "digits_paper", "storage=s3://a:b@bucket/x"], "secret"),
        (["submit", "train"], "name a preset"),
        (["submit", "doctor"], "'doctor' cannot be submitted; known are train, sweep, evaluate, resume, clone"),
        (["submit", "sweep"], "WHAT"),
        (["submit", "sweep", "table3", "storage=/r"], "did you mean table2?"),
        (["submit", "sweep", "table2", "--smoke"], "storage = './runs'"),
        (["submit", "sweep", "table2", "--smoke", "storage=/r", "--sedes", "3"], "--sedes"),
        (["submit", "sweep", "table2", "--smoke", "storage=/r", "--seeds", "0"], "--seeds 0: must lie in"),
        (["submit", "sweep", "table2", "--smoke", "storage=/r", "data.root=data"], "data.root = 'data'"),
        (["submit", "sweep", "my.yaml", "storage=/r"], "WHAT = 'my.yaml': nodes of the cluster"),
        (["submit", "sweep", "digits_paper", "sampler.step_size=uniform(2,1)", "storage=/r"], "uniform(2,1)"),
        (["submit", "evaluate", "digits-0001", "--metrics", "ood"], "'./runs'"),
        (["resume", "nothing"], "run 'nothing' is not in"),
        (["resume", "nothing", "--address", "http://x:1"], "'./runs'"),
    ],
)
def test_what_cannot_work_there_is_one_line_before_anything_travels(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with dashboard(version(ray.__version__)) as address:
        if words[0] == "submit" and "--address" not in words:
            words = [*words, "--address", address]
        assert run_main(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ebm: ")
    assert error.count("\n") == 1
    assert said in error
    assert "word@" not in error
    assert "a:b" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_job_takes_along_its_name_version_settings_code_and_the_time_it_needs_to_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-to-travel")
    posted: list[dict] = []
    answers = version(ray.__version__) | {"/api/jobs/": (200, {"job_id": "j", "submission_id": "run-1"})}

    class Everything(dict):  # what is asked for a package: it is there already
        def get(self, path: str, default: object) -> object:
            return answers.get(path, (200, {}))

    with dashboard(Everything(), posted) as address:
        words = ["train", "digits_paper", "storage=s3://b/runs", "train.num_steps=7", "name=run"]
        assert run_main(monkeypatch, "submit", *words, "--address", address, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"run": "run", "job": "run-1", "address": address}
    (job,) = posted
    assert "never-to-travel" not in json.dumps(job)
    assert job["entrypoint"] == "python -m orchestrator.cli " + " ".join(words)
    assert job["submission_id"].startswith("run-")
    settings = parse(json.loads(job["metadata"]["ebm.settings"]))
    assert settings == override(job_preset("digits_paper"), words[2:])
    assert job["metadata"]["ebm.run"] == "run"
    assert len(job["metadata"]["ebm.code"]) == 64
    assert len(job["runtime_env"]["py_modules"]) == 3
    assert job["runtime_env"]["env_vars"]["AWS_ENDPOINT_URL"] == "http://s3:9000"
    assert 30 <= int(job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) < 60


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["sweep", "table2", "storage=s3://b/r", "--smoke", "--seeds", "3"], "table2-digits-smoke"),
        (
            ["sweep", "digits_paper", "storage=/r", "sampler.step_size=uniform(1,2)", "--trials=4", "--name", "mine"],
            "mine",
        ),
    ],
)
def test_a_sweep_travels_as_it_was_typed_under_its_own_name(words: list[str], name: str):
    told, travelling, settings = check_words(words)
    assert (told, travelling) == (name, words)
    assert settings is not None
    assert settings["storage"] == words[2].removeprefix("storage=")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "digits_paper", "storage=/r", "data.root=~/data"],
        ["sweep", "table2", "--smoke", "storage=/r", "data.root=~/data"],
        ["resume", "/r/run", "data.root=~/data"],
        ["clone", "/r/run", "data.root=~/data"],
    ],
)
def test_a_home_folder_travels_as_the_one_of_this_machine(words: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/here")
    _, travelling, settings = check_words(words)
    assert "data.root=/home/here/data" in travelling
    assert not any("~" in word for word in travelling)
    assert settings is None or settings["data"]["root"] == "/home/here/data"


def test_a_home_folder_in_the_file_of_a_sweep_travels_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/here")
    path = tmp_path / "mine.yaml"
    path.write_text("preset: digits_paper\nsettings: {data.root: ~/data, storage: /r}\nrows: [{key: a}]\n")
    _, travelling, _ = check_words(["sweep", str(path)])
    assert travelling == ["sweep", str(path), "data.root=/home/here/data"]


def test_a_run_without_a_name_gets_one_that_no_other_has():
    names = set()
    for _ in range(2):
        name, words, _ = check_words(["train", "digits_paper", "storage=/shared"])
        assert words[-1] == f"name={name}"
        assert name.startswith("digits_paper-2")
        names.add(name)
    assert len(names) == 2


def test_the_digest_tells_code_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submit, "code_folders", lambda: [tmp_path])
    (tmp_path / "a.py").write_text("x = 1")
    before = submit.code_digest()
    assert submit.code_digest() == before
    (tmp_path / "a.py").write_text("x = 2")
    assert submit.code_digest() != before


class Dropping:
    """A job server that loses the connection in the middle of the log, and sends the log from its start each time."""

    log = "first\nsecond\nthird\n"

    def __init__(self) -> None:
        self.tails = 0

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        self.tails += 1
        if self.tails == 1:
            yield "first\nsec"
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        yield "first\n"
        yield "second\nthi"

    def get_job_logs(self, _: str) -> str:
        return self.log


def test_a_followed_log_shows_every_word_once_though_the_connection_breaks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submit, "POLL_S", 0.001)
    jobs = Jobs.__new__(Jobs)
    jobs._client, jobs.address = Dropping(), "http://x"  # pyright: ignore[reportAttributeAccessIssue]
    over = Job(**(JOB.tree() | {"status": "SUCCEEDED"}))
    states = iter([JOB, over])
    monkeypatch.setattr(jobs, "refresh", lambda _: next(states))
    shown: list[str] = []
    assert jobs.follow(JOB, shown.append) == over
    assert "".join(shown) == Dropping.log


def test_a_job_that_does_not_end_in_time_is_an_error_and_an_ended_one_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submit, "POLL_S", 0.001)
    jobs = Jobs.__new__(Jobs)
    stopped: list[str] = []
    jobs._client = type("Client", (), {"stop_job": lambda _, job: stopped.append(job)})()  # pyright: ignore
    jobs.address = "http://x"
    monkeypatch.setattr(jobs, "refresh", lambda job: job)
    with pytest.raises(ClusterError, match=r"run-1 has not ended within 0\.01 s"):
        jobs.stop(JOB, wait_s=0.01)
    assert stopped == ["run-1"]
    over = Job(**(JOB.tree() | {"status": "FAILED"}))
    assert jobs.stop(over) == over
    assert stopped == ["run-1"]


def stored(folder: Path, *settings: str) -> RunStore:
    job = override(job_preset("digits_paper"), ["name=digits-0007", "storage=/elsewhere", "seed=5", *settings])
    store = RunStore(str(folder))
    store.run("digits-0007").write_config(to_tree(job))
    return store


def test_a_resumed_run_has_its_stored_settings_where_it_lies_now(tmp_path: Path):
    stored(tmp_path)
    job = resumed_job("digits-0007", str(tmp_path), ["train.num_steps=99999"])
    assert (job.name, job.seed, job.train.num_steps) == ("digits-0007", 5, 99999)
    assert job.storage == str(tmp_path)
    with pytest.raises(ConfigError, match="keeps its name"):
        resumed_job("digits-0007", str(tmp_path), ["name=other"])


def test_a_clone_differs_in_what_was_asked_and_gets_a_name_of_its_own(tmp_path: Path):
    stored(tmp_path)
    job, prefix = cloned_job(f"{tmp_path}/digits-0007", "./runs", ["loss.kl_weight=0"])
    assert (job.name, prefix, job.seed, job.loss.kl_weight) == (None, "digits", 5, 0.0)
    with pytest.raises(ConfigError, match="exists in"):
        cloned_job("digits-0007", str(tmp_path), ["name=digits-0007"])


def test_a_run_remembers_the_job_that_its_cluster_has_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "digits-0007-ab"}}))
    store = stored(tmp_path)
    job = parse(store.run("digits-0007").read_config())
    runs.update(store.run("digits-0007"), job, provenance.provenance(job))
    (lost,) = lost_jobs(str(tmp_path), set())
    assert (lost.run, lost.job, lost.status, lost.is_over()) == ("digits-0007", "digits-0007-ab", "LOST", True)
    assert lost_jobs(str(tmp_path), {"digits-0007-ab"}) == []


def test_outside_of_a_job_there_is_no_job(monkeypatch: pytest.MonkeyPatch):
    for text in ("", "{", "[]", "{}"):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", text)
        assert provenance.submission_id() is None
