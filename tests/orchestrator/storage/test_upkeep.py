"""`ebm verify` finds each damaged file and changes nothing; `ebm gc` deletes orphans and never what is reachable."""

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cli import app
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.interface import Leftover, StorageError
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.upkeep import collect, examine
from tests.faults import moto_bucket
from tests.store_contract import (
    CHECKPOINT_FILES,
    DAMAGES,
    checkpoint_keys,
    flip_bit,
    stored_content,
    upload_checkpoint,
    write_checkpoint,
)

LATER = datetime.now(UTC) + timedelta(days=3)
"""When everything that the tests write is old."""


@pytest.fixture(params=["folder", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    """A run without checkpoints, in a folder and on moto's server."""
    if request.param == "folder":
        run = RunStore(str(tmp_path / "runs")).run("r")
        run.write_config({})
        yield run
        return
    with moto_bucket("upkeep") as endpoint:
        run = RunStore(S3Store("upkeep", tmp_path.name, endpoint)).run("r")
        run.write_config({})
        yield run


def damaged(run: Run) -> dict[tuple[int, str], str]:
    return {(v.step, v.name): v.problem for v in examine(run) if v.problem}


def test_every_file_of_a_sound_checkpoint_is_listed_with_its_size(run: Run):
    _, manifest = write_checkpoint(run, 1)
    found = {v.name: v.size for v in examine(run)}
    sizes = {name: len(data) + 1 for name, data in CHECKPOINT_FILES.items()}
    assert found == {"COMMITTED": None, "MANIFEST.json": len(manifest), **sizes}
    assert damaged(run) == {}


def test_each_damage_of_each_file_is_found_and_nothing_is_marked(run: Run):
    attempt, _ = write_checkpoint(run, 1)
    write_checkpoint(run, 2)
    for key in checkpoint_keys(1, attempt):
        sound, name = run.read_bytes(key), key.rpartition("/")[2]
        for damage in DAMAGES:
            damage(run, key)
            before = stored_content(run)
            if (name, damage.__name__) == ("COMMITTED", "remove"):
                assert {v.step for v in examine(run)} == {2}  # no longer a checkpoint
            else:
                ((step, _), problem), *others = damaged(run).items()
                assert (step, others) == (1, [])
                assert name in problem, f"{problem!r} does not name {name}"
            assert stored_content(run) == before
            run.write_bytes(key, sound)


def test_damaged_checkpoints_are_set_aside_when_asked(run: Run):
    attempt, _ = write_checkpoint(run, 1)
    write_checkpoint(run, 2)
    flip_bit(run, checkpoint_keys(1, attempt)[0])
    messages: list[str] = []
    list(examine(run, messages.append))
    assert run.checkpoints() == [2]
    assert len(messages) == 1
    assert "model.safetensors" in messages[0]
    assert {v.step for v in examine(run, messages.append) if v.set_aside} == {1}
    assert len(messages) == 1


def test_orphans_go_once_they_are_old_and_what_a_commit_names_stays(run: Run, tmp_path: Path):
    early, _ = upload_checkpoint(run, 1)
    late, _ = upload_checkpoint(run, 2, b"the loser")
    write_checkpoint(run, 2)
    newer, _ = upload_checkpoint(run, 3)
    assert collect(run) == [], "an upload of a moment ago was taken for an orphan"
    before = stored_content(run)
    would = collect(run, now=LATER, dry_run=True)
    assert stored_content(run) == before
    assert [r.what for r in would] == [f"checkpoints/step-000000001/{early}", f"checkpoints/step-000000002/{late}"]
    assert collect(run, now=LATER) == would
    after = stored_content(run)
    assert before.keys() - after.keys() == {key for key in before if f"/{early}/" in key or f"/{late}/" in key}
    assert any(newer in key for key in after), "the newest attempt may be all that is left of a lost COMMITTED"
    assert run.newest_sound(tmp_path, lambda _: None) is not None
    assert collect(run, now=LATER) == []


def test_nothing_goes_beside_a_commit_that_cannot_be_read(run: Run):
    upload_checkpoint(run, 1)
    write_checkpoint(run, 1)
    run.write_bytes("checkpoints/step-000000001/COMMITTED", b"torn")
    before = stored_content(run)
    assert collect(run, now=LATER) == []
    assert stored_content(run) == before


def test_what_killed_writers_left_beside_the_objects_goes(run: Run):
    write_checkpoint(run, 1)
    store = run.store.objects
    if isinstance(store, FolderStore):
        for name in ("r/.tmp-1", "r/checkpoints/step-000000001/.tmp-2", ".tmp-of-another"):
            (store.root / name).write_text("torn")
        expected = ["r/.tmp-1", "r/checkpoints/step-000000001/.tmp-2"]
    else:
        for key in ("r/metrics/part", "other/part"):
            store._client.create_multipart_upload(Bucket=store.bucket, Key=f"{store.prefix}/{key}")
        expected = ["r/metrics/part (parts)"]
    if isinstance(store, FolderStore):  # moto says of every upload that it began in 2010
        assert collect(run) == []
    before = stored_content(run)
    assert [r.what for r in collect(run, now=LATER, dry_run=True)] == expected
    assert [r.what for r in collect(run, now=LATER)] == expected
    assert list(store.leftovers("r/")) == []
    assert stored_content(run) == before
    if isinstance(store, FolderStore):
        assert (store.root / ".tmp-of-another").exists()
    else:
        assert len(list(store.leftovers(""))) == 1


def test_a_leftover_that_is_an_object_is_not_discarded(tmp_path: Path):
    store = FolderStore(tmp_path)
    store.put("a/b", b"x")
    for key in ("a/b", "../.tmp-1", "a/../../.tmp-1", "/.tmp-1"):
        with pytest.raises(StorageError):
            store.discard(Leftover(key, 0, LATER, key))
    assert store.get("a/b") == b"x"


STEP_STATES = ("sound", "damaged", "set aside", "committed again", "torn COMMITTED", "lost COMMITTED")


def build(run: Run, step: int, state: str, orphans: list[str], old: bool) -> None:
    """One step of a run, in the state that faults of all kinds may have left."""
    for orphan in orphans:
        attempt, manifest = upload_checkpoint(run, step, b"orphan")
        if orphan == "uploaded":
            run.write_bytes(f"checkpoints/step-{step:09d}/{attempt}/MANIFEST.json", manifest)
    if state != "none":
        attempt, _ = write_checkpoint(run, step)
        if state in ("damaged", "set aside", "committed again"):
            flip_bit(run, checkpoint_keys(step, attempt)[0])
        if state in ("set aside", "committed again"):
            run.at(step).set_aside("a test", lambda _: None)
        if state == "committed again":
            write_checkpoint(run, step)
        if state == "torn COMMITTED":
            run.write_bytes(f"checkpoints/step-{step:09d}/COMMITTED", b"{")
        if state == "lost COMMITTED":
            run.store.objects.delete(f"r/checkpoints/step-{step:09d}/COMMITTED")
    if old:
        for info in run.list(f"checkpoints/step-{step:09d}/"):
            os.utime(Path(run.uri) / info.key, (0, 0))


step_states = st.tuples(
    st.sampled_from(("none", *STEP_STATES)),
    st.lists(st.sampled_from(("uploaded", "partial")), max_size=2),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(step_states, min_size=1, max_size=4), st.booleans())
def test_gc_deletes_nothing_reachable_whatever_faults_came_before(states: list, dry_run: bool):
    with tempfile.TemporaryDirectory() as folder:
        run = RunStore(str(Path(folder, "runs"))).run("r")
        run.write_config({})
        for step, (state, orphans, old) in enumerate(states, start=1):
            build(run, step, state, orphans, old)
        before, visible = stored_content(run), run.checkpoints()
        sound_before = {step for step in visible if not any(s == step for s, _ in damaged(run))}
        found = collect(run, dry_run=dry_run)
        after = stored_content(run)
        gone = before.keys() - after.keys()
        assert all(after[key] == before[key] for key in after), "something was changed"
        assert gone == (set() if dry_run else {key for key in before if any(key.startswith(r.what) for r in found)})
        assert all("/attempt-" in key for key in gone)
        for key in gone:  # each was old
            assert states[int(key.split("/")[1][5:]) - 1][2], f"{key} is young"
        assert run.checkpoints() == visible
        assert {step for step in visible if not any(s == step for s, _ in damaged(run))} == sound_before
        for step in sound_before:
            run.fetch_checkpoint(step, Path(folder, "into"))
        for step, (state, _, _) in enumerate(states, start=1):
            if state == "torn COMMITTED":
                assert not any(f"step-{step:09d}/" in key for key in gone)


def ebm(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["ebm", *words])
    with pytest.raises(SystemExit) as caught:
        app.main()
    return int(caught.value.code or 0)


def test_the_commands_print_tables_and_exit_with_1_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    run = RunStore(str(tmp_path / "runs")).run("r")
    run.write_config({})
    attempt, _ = write_checkpoint(run, 1)
    write_checkpoint(run, 2)
    where = str(tmp_path / "runs" / "r")
    assert ebm(monkeypatch, "verify", where) == 0
    assert "2 of 2 checkpoints can be used" in capsys.readouterr().out
    flip_bit(run, checkpoint_keys(1, attempt)[1])
    assert ebm(monkeypatch, "verify", where) == 1
    out = capsys.readouterr().out
    assert [line.split()[-1] for line in out.splitlines() if "state.json " in line][:2] == ["damaged", "sound"]
    assert run.checkpoints() == [1, 2]
    assert ebm(monkeypatch, "verify", where, "--set-aside") == 1
    assert "state.json" in capsys.readouterr().err
    assert run.checkpoints() == [2]
    orphan, _ = upload_checkpoint(run, 2, b"orphan")
    for info in run.list("checkpoints/step-000000002/"):
        os.utime(tmp_path / "runs" / "r" / info.key, (0, 0))
    assert ebm(monkeypatch, "gc", where, "--dry-run") == 0
    assert "would delete 1 leftovers" in capsys.readouterr().out
    assert ebm(monkeypatch, "gc", where) == 0
    out = capsys.readouterr().out
    assert orphan in out
    assert "deleted 1 leftovers" in out
    assert run.checkpoints() == [2]
    for command in ("verify", "gc"):
        assert ebm(monkeypatch, command, str(tmp_path / "runs" / "none")) == 2
        assert "is not in" in capsys.readouterr().err
