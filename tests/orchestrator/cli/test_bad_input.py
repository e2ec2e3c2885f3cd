"""Whatever a person gets wrong: one clear line, exit status 2, and nothing that was stored has changed."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from ebm_core.checkpoint import MANIFEST, write_shards, write_shared
from ebm_core.config import TrainConfig
from ebm_core.manifest import describe, manifest_bytes
from ebm_core.trainer import init_state, train_step
from orchestrator.cli import app
from orchestrator.records import runs
from orchestrator.settings.job import core_config, job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import RunStore
from tests.ebm_core.tiny import batch

SMALL = [
    "model.widths=4,8,8",
    "train.batch_size=8",
    "buffer.capacity=16",
    "sampler.num_steps=2",
    "sampler.generate_steps=2",
    "train.num_steps=4",
]


def store_checkpoint(store: RunStore, name: str, cfg: TrainConfig, num_steps: int, folder: Path) -> None:
    """Train a few steps without Ray and store the result as the job does."""
    state, run = init_state(cfg), store.run(name)
    for step in range(num_steps):
        train_step(state, batch(step, cfg), cfg)
    folder.mkdir()
    names = write_shared(state, cfg, folder) + write_shards(state, folder)
    attempt = run.new_attempt()
    for file in names:
        run.put_checkpoint_file(state.step, attempt, folder / file)
    run.commit(state.step, attempt, manifest_bytes(describe(folder, names), state.step))


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `good` (checkpoints at 1 and 2) and `bare` (settings alone)."""
    base = tmp_path_factory.mktemp("stored")
    store = RunStore(str(base / "runs"))
    for name in ("good", "bare"):
        job = override(job_preset("digits_paper"), [*SMALL, f"name={name}", f"storage={base / 'runs'}"])
        assert runs.create(store, job, {})
    for step in (1, 2):
        store_checkpoint(store, "good", core_config(job), step, base / f"files-{step}")
    return base / "runs"


@pytest.fixture
def here(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a copy of the stored runs, and things that are not what they seem."""
    import shutil

    shutil.copytree(stored, tmp_path / "runs")
    (tmp_path / "file.txt").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "note.txt").write_text("no image")
    broken = tmp_path / "broken" / "cifar-10-batches-py"
    broken.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    for name in names:
        (broken / name).write_bytes(b"\x80\x04not what was published")
    with tarfile.open(tmp_path / "archive.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EBM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return tmp_path


def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["ebm", *words])
    with pytest.raises(SystemExit) as end:
        app.main()
    return int(end.value.code or 0), capsys.readouterr().err


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


SETTINGS = [
    ("sampler.stepsize=1", "did you mean sampler.step_size?"),
    ("sampler=1", "setting 'sampler' is a section"),
    ("sampler.num_steps", "write it as PATH=VALUE"),
    ("sampler.num_steps=", "sampler.num_steps = '': must be a whole number"),
    ("sampler.num_steps=1.5", "sampler.num_steps = '1.5': must be a whole number"),
    ("sampler.num_steps=-3", "sampler.num_steps = -3: must lie in 1 to 100000"),
    ("sampler.num_steps=9" + "9" * 400, "sampler.num_steps"),
    ("sampler.step_size=nan", "sampler.step_size = nan: must be a finite number"),
    ("sampler.step_size=fast", "sampler.step_size = 'fast': must be a number"),
    ("sampler.noise_std=-1", "sampler.noise_std = -1.0: must not be negative"),
    ("sampler.kind=gibbs", "sampler.kind = 'gibbs': must be one of langevin, hmc"),
    ("sampler.clamp=yes", "sampler.clamp = 'yes': must be true or false"),
    ("loss.kl_weight=-1", "loss.kl_weight = -1.0: must not be negative"),
    ("loss.kl_weight=inf", "loss.kl_weight = inf: must be a finite number"),
    ("optimizer.lr=0", "optimizer.lr = 0.0: must lie in 0 (excluded) to 1"),
    ("optimizer.betas=0.5", "optimizer.betas = '0.5': must be 2 numbers"),
    ("model.widths=", "model.widths"),
    ("model.widths=64,x", "model.widths = '64,x': must be whole numbers"),
    ("model.widths=32,64,128,256,512,1024", "down-sampling layers do not fit images of 8 x 8"),
    ("model.multiscale=true", "three scales need 4 widths or more"),
    ("buffer.capacity=2", "buffer.capacity = 2: must be at least buffer.num_shards"),
    ("buffer.restart_fraction=2", "buffer.restart_fraction = 2.0: must lie in 0 to 1"),
    ("augment.blur_kernel=4", "augment.blur_kernel = 4: must be an odd number"),
    ("train.batch_size=0", "train.batch_size = 0: must lie in 1 to 65536"),
    ("checkpoint.keep=1", "checkpoint.keep = 1: must be at least 2"),
    ("checkpoint.every=0", "checkpoint.every = 0: must be at least 1"),
    ("evaluation.metrics=fid_smal", "did you mean fid_small?"),
    ("cluster.num_workers=3", "cluster.num_workers = 3: must divide buffer.num_shards = 8"),
    ("cluster.num_workers=0", "cluster.num_workers = 0: must lie in 1 to 4096"),
    ("cluster.min_workers=2", "cluster.min_workers = 2: must lie in 1 to cluster.num_workers = 1, or null"),
    ("engine.device=cuda", "needs cluster.use_gpu=true"),
    ("name=../out", "name = '../out'"),
    ("name=a/b", "name = 'a/b'"),
    ("name=", "name = ''"),
    ("seed=-1", "seed = -1: must lie in 0"),
    ("data.name=cifar", "did you mean cifar10?"),
    ("data.image_size=7", "data.image_size = 7: must lie in 8 to 1024"),
    ("data.channels=4", "data.channels = 4"),
]
PLACES = [
    (["train", "cifar10", "data.root=nowhere"], "ebm data download cifar10 data.root="),
    (["train", "mnist", "data.root=empty"], "ebm data download mnist data.root="),
    (["train", "cifar10", "data.root=broken"], "data_batch_1"),
    (["train", "cifar10", "data.root=file.txt"], "file.txt"),
    (["train", "cifar10", "data.name=image_folder", "data.root=empty"], "empty"),
    (["train", "cifar10", "data.name=image_folder", "data.root=texts"], "texts"),
    (["train", "digits_paper", "data.condition=attributes"], "attributes"),
    (["train", "digits_paper", "data.root=s3://user:word@bucket/x"], "data.root: must name a folder or s3://"),
    (["data", "download", "mnist", "data.root=s3://bucket/x"], "downloads go to a folder"),
    (["data", "prepare", "digits", "--to", "file.txt"], "file.txt"),
    (
        ["data", "prepare", "cifar10", "data.root=nowhere", "--to", "place"],
        "ebm data download cifar10 data.root=nowhere",
    ),
    (["data", "prepare", "digits", "--to", "s3://user:word@bucket/x"], "must name a folder or s3://"),
    (["data", "prepare", "digits"], "--to"),
    (["train", "digits_paper", "storage=file.txt"], "file.txt"),
    (["train", "digits_paper", "storage=file.txt/runs"], "file.txt"),
    (["train", "digits_paper", "storage=/proc/runs"], "/proc/runs"),
    (["train", "digits_paper", "storage=ftp://host/x"], "ftp"),
    (["train", "digits_paper", "storage=s3://user:word@bucket/x"], "keep them out of the URI"),
    (["train", "digits_paper", "storage=s3://bucket/x?endpoint_url=http://127.0.0.1:9"], "127.0.0.1:9"),
    (["train", "digits_paper", *SMALL, "name=good", "sampler.step_size=3"], "sampler.step_size was 2.0, now 3.0"),
    (["sample", "absent"], "run 'absent' is not in"),
    (["sample", "bare"], "has no checkpoint"),
    (["sample", "good", "--checkpoint", "7"], "7"),
    (["sample", "good", "--out", "no/where.png"], "does not exist"),
    (["sample", "good", "--out", "empty"], "empty"),
    (["sample", "../runs/../../etc/passwd"], "passwd"),
    (["runs", "--storage", "file.txt"], "file.txt"),
    (["data", "check", "cifar10", "data.root=broken"], "data_batch_1"),
    (["evaluate", "good", "--metrics", "fid"], "then run `ebm data inception --from FILE`"),
    (["evaluate", "good", "--metrics", "kid_medium,fid_small"], "then run `ebm data mobilenet --from FILE`"),
    (
        ["evaluate", "good", "--metrics", "fid", "--cache", "file.txt"],
        "file.txt/weights/inception.safetensors is missing",
    ),
    (["evaluate", "good", "--metrics", "fit"], "--metrics 'fit': unknown"),
    (["evaluate", "good", "--metrics", ""], "--metrics names nothing"),
    (["evaluate", "good", "--metrics", "fid,inception_score", "--num-images", "9"], "needs at least 10 images"),
    (["train", "digits_paper", *SMALL, "evaluation.metrics=fid"], "then run `ebm data inception --from FILE`"),
    (
        ["train", "digits_paper", "evaluation.metrics=precision_recall", "evaluation.num_images=5"],
        "needs at least 6 images",
    ),
    (["data", "inception", "--from", "absent.pth"], "absent.pth: no such file"),
    (["data", "inception", "--from", "file.txt"], "SHA-256"),
    (["data", "inception"], "--from"),
    (["data", "mobilenet", "--from", "file.txt"], "cannot be read as the weights"),
    (["data", "mobilenet", "--from", "empty"], "empty: no such file"),
    (["train", "digits_paper", "--address", "127.0.0.1:1"], "no Ray answers at 127.0.0.1:1"),
    (["trian", "digits"], "trian"),
]


def test_the_table_is_as_long_as_it_claims():
    assert len(SETTINGS) + len(PLACES) >= 60


@pytest.mark.parametrize(("setting", "said"), SETTINGS, ids=[setting[:40] for setting, _ in SETTINGS])
def test_a_wrong_setting(setting: str, said: str, here: Path, monkeypatch, capsys):
    before = snapshot(here)
    status, error = answer(monkeypatch, capsys, "train", "digits_paper", setting)
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith("ebm: ")
    assert said in error
    assert len(error) < 700
    assert snapshot(here) == before


@pytest.mark.parametrize(("words", "said"), PLACES, ids=[" ".join(words)[:60] for words, _ in PLACES])
def test_a_wrong_place(words: list[str], said: str, here: Path, monkeypatch, capsys):
    before = snapshot(here)
    status, error = answer(monkeypatch, capsys, *words)
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith("ebm: ")
    assert said in error
    assert snapshot(here) == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("file", ["ema.safetensors", "state.json", "buffer-shard-0003.safetensors", MANIFEST])
def test_a_damaged_checkpoint_is_set_aside_and_without_a_sound_one_nothing_happens(
    damage: str, file: str, here: Path, monkeypatch, capsys
):
    def harm(step: int) -> None:
        (path,) = (here / "runs" / "good" / "checkpoints" / f"step-{step:09d}").glob(f"attempt-*/{file}")
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
        elif damage == "truncate":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()

    harm(2)
    status, said = answer(monkeypatch, capsys, "sample", "good", "--count", "4", "--out", "one.png")
    assert status == 0
    assert "step" in said  # what was set aside, and why
    assert (here / "one.png").stat().st_size > 0
    harm(1)
    before = snapshot(here)
    status, said = answer(monkeypatch, capsys, "sample", "good", "--count", "4", "--out", "two.png")
    assert status == 2
    assert said.splitlines()[-1].startswith("ebm: ")
    after = snapshot(here)
    assert {key: after[key] for key in before} == before  # markers may come, nothing goes or changes
    assert "two.png" not in after


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"sampler": 3}', json.dumps({"name": 5}).encode(), b"\xff\xfe"]
)
def test_a_damaged_config_stops_a_resume_and_is_not_overwritten(content: bytes, here: Path, monkeypatch, capsys):
    config = here / "runs" / "good" / "config.json"
    config.write_bytes(content)
    before = snapshot(here)
    status, error = answer(monkeypatch, capsys, "train", "digits_paper", *SMALL, "name=good")
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith("ebm: ")
    assert snapshot(here) == before
