"""The checks that every object store, and every store of runs, must pass: for this project's tests and for yours.

A check is a plain function of a factory. `open_store(name)` returns the store of that name: empty at first, and the
same objects whenever the same name is opened again. A check raises AssertionError when a promise is broken:

    @pytest.mark.parametrize("check", STORE_CHECKS)
    def test_my_store(check, tmp_path):
        check(lambda name: MyStore(tmp_path / name))

`STORE_CHECKS` take stores of objects, `RUN_CHECKS` take stores of runs (`orchestrator.storage.run_store.RunStore`).
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

from ebm_core.errors import CheckpointError, EbmError
from ebm_core.manifest import MANIFEST_NAME, FileEntry, describe, manifest_bytes, verify

OpenStore = Callable[[str], Any]
Check = Callable[[OpenStore], None]

BAD_KEYS = (
    "",
    ".",
    "..",
    "../outside",
    "a/../../outside",
    "a/./b",
    "/absolute",
    "/",
    "a/",
    "a//b",
    "a/.hidden",
    ".tmp-0",
    "a\0b",
    "a\nb",
    "a\\b",
    "..\\outside",
    "C:evil",
    "a b",
    "a%2e%2e",
    "~root",
    "ａ",  # full-width a
    "a／b",  # full-width solidus
    "․․/outside",  # one dot leaders
    "．．/outside",  # full-width full stops
    "﹒﹒/outside",  # small full stops
    "‥/outside",  # two dot leader
    "..∕outside",  # division slash
    "..⁄outside",  # fraction slash
    "..⧸outside",  # big solidus
    "a\u200b/b",  # zero width space
    "a\u202eb",  # right-to-left override
    "a/..\0/b",
    "..",
    "a/..",
    "..%2foutside",
    "%2e%2e/outside",
    "a\\..\\..\\outside",
    "\\\\server\\share",
    "file:///outside",
    "a\rb",
    "b\n",
    "café",
    "a*",
    "a?b",
    "x" * 201,
    "/".join(["x" * 100] * 8),
)
NUM_RACERS = 12


def expect_error(kind: type[EbmError], call: Callable[..., object], *arguments: object) -> str:
    """Call, and return the message of the error of that kind that it raises: one line."""
    try:
        found = call(*arguments)
    except kind as error:
        message = str(error)
        assert message.count("\n") == 0 < len(message), f"an error must be one clear line, got {message!r}"
        return message
    raise AssertionError(f"expected {kind.__name__}, got {found!r:.100} from {call.__name__}{arguments!r:.200}")


def check_round_trip(open_store: OpenStore) -> None:
    """Bytes come back exactly, whatever they are, by either way of reading, also through a second opening."""
    store = open_store("round-trip")
    for key, data in {"empty": b"", "deep/er/key-1.bin": bytes(range(256)) * 100, "text": b"a\r\nb\n\0"}.items():
        store.put(key, data)
        again = open_store("round-trip")
        assert again.get(key) == data, f"{key} came back changed"
        assert again.size(key) == len(data), f"{key} has a wrong size"
        assert again.exists(key), f"{key} is stored and does not exist"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "copy")
            path.write_bytes(b"longer than what replaces it" * 1000)
            again.get_file(key, path)
            assert path.read_bytes() == data, f"{key} came back changed as a file"


def check_files_as_source(open_store: OpenStore) -> None:
    """A local file is stored by its content; one that cannot be read stores nothing."""
    store = open_store("files")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.write_bytes(b"0123456789" * 50_000)
        store.put("put", source)
        assert store.create("created", source), "create of a new key must return True"
        assert store.get("put") == store.get("created") == source.read_bytes()
        for method in (store.put, store.create):
            assert "absent" in expect_error(EbmError, method, "never", Path(folder, "absent"))
    assert not store.exists("never"), "an object was made of a file that does not exist"


def check_replacing(open_store: OpenStore) -> None:
    """A second put replaces the object wholly."""
    store = open_store("replace")
    store.put("key", b"a long first content")
    store.put("key", b"second")
    assert store.get("key") == b"second"
    assert [info.size for info in store.list()] == [6]


def check_create_once(open_store: OpenStore) -> None:
    """The first create wins and later ones change nothing; a put also counts as first."""
    store = open_store("create")
    assert store.create("key", b"first") is True
    assert store.create("key", b"second") is False
    assert store.get("key") == b"first"
    store.put("other", b"put")
    assert store.create("other", b"created") is False
    store.delete("key")
    assert store.create("key", b"third") is True, "a deleted key can be created again"
    assert store.get("key") == b"third"


def check_one_winner(open_store: OpenStore) -> None:
    """Of racers that create one key at the same moment exactly one is told so, and its content is what stays."""
    stores = [open_store("race") for _ in range(NUM_RACERS)]
    for game in range(3):
        barrier = Barrier(NUM_RACERS)

        def race(racer: int, game: int = game, barrier: Barrier = barrier) -> bool:
            barrier.wait()
            return stores[racer].create(f"game-{game}/COMMITTED", b"racer %d" % racer)

        with ThreadPoolExecutor(NUM_RACERS) as pool:
            won = list(pool.map(race, range(NUM_RACERS)))
        assert won.count(True) == 1, f"{won.count(True)} of {NUM_RACERS} racers won"
        assert stores[0].get(f"game-{game}/COMMITTED") == b"racer %d" % won.index(True)
    assert len(list(stores[0].list())) == 3, "the losers left something behind"


def check_listing(open_store: OpenStore) -> None:
    """A listing is sorted, filtered by the text of the prefix, and knows sizes and times."""
    store = open_store("list")
    started = datetime.now(UTC) - timedelta(seconds=5)
    keys = ["a0", "a-b/1", "a.b", "a/1", "a/2/x", "ab/1", "b/step-000000010", "b/step-000000009", "Z"]
    for number, key in enumerate(keys):
        store.put(key, b"x" * number)
    assert [info.key for info in store.list()] == sorted(keys)
    for prefix in ("a", "a/", "a/2", "a/2/", "b/step-", "none", "Z", "b/step-000000009/"):
        expected = sorted(key for key in keys if key.startswith(prefix))
        assert [info.key for info in store.list(prefix)] == expected, f"wrong listing of {prefix!r}"
    assert {info.key: info.size for info in store.list()} == {key: n for n, key in enumerate(keys)}
    for info in store.list():
        assert info.modified.tzinfo is not None
        assert started - timedelta(minutes=5) < info.modified < datetime.now(UTC) + timedelta(minutes=5)
    assert list(store.folders()) == ["a", "a-b", "ab", "b"]
    assert list(store.folders("a/")) == ["2"]
    assert list(store.folders("nowhere/")) == []


def check_long_listing(open_store: OpenStore) -> None:
    """A listing longer than a page of the server is complete. (Open the store with pages shorter than 100 keys.)"""
    store = open_store("many")
    keys = [f"part-{number:05d}" for number in range(105)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert [info.key for info in store.list("part-")] == keys


def check_deleting(open_store: OpenStore) -> None:
    """A deleted object is gone, its neighbours are not, and deleting again is no error."""
    store = open_store("delete")
    for key in ("a/b/1", "a/b/2", "a/c"):
        store.put(key, b"x")
    store.delete("a/b/1")
    store.delete("a/b/1")
    store.delete("never/was")
    assert not store.exists("a/b/1")
    assert [info.key for info in store.list()] == ["a/b/2", "a/c"]
    store.delete("a/b/2")
    assert list(store.folders("a/")) == [], "a folder without objects is still listed"
    store.put("a/b", b"its name is free")


def check_missing(open_store: OpenStore) -> None:
    """Reading what is not there is one clear line that names it; asking for it is an answer."""
    store = open_store("missing")
    store.put("folder/key", b"x")
    with tempfile.TemporaryDirectory() as folder:
        for key in ("nothing", "folder", "folder/other", "folder/key/below"):
            assert store.exists(key) is False, f"{key} exists"
            assert key in expect_error(EbmError, store.get, key)
            assert key in expect_error(EbmError, store.size, key)
            assert key in expect_error(EbmError, store.get_file, key, Path(folder, "copy"))
    assert list(open_store("never-written").list()) == []
    assert list(open_store("never-written").folders()) == []


def check_keys(open_store: OpenStore) -> None:
    """No operation accepts a key that could leave the root or mean two things."""
    store = open_store("keys")
    store.put("a/b", b"x")
    with tempfile.TemporaryDirectory() as folder:
        for key in BAD_KEYS:
            expect_error(EbmError, store.put, key, b"evil")
            expect_error(EbmError, store.create, key, b"evil")
            expect_error(EbmError, store.get, key)
            expect_error(EbmError, store.get_file, key, Path(folder, "copy"))
            expect_error(EbmError, store.delete, key)
            expect_error(EbmError, store.exists, key)
            expect_error(EbmError, store.size, key)
        for prefix in ("..", "../", "/", "a/../", "a//", "./"):
            expect_error(EbmError, lambda prefix: list(store.list(prefix)), prefix)
            expect_error(EbmError, lambda prefix: list(store.folders(prefix)), prefix)
    assert [info.key for info in store.list()] == ["a/b"]
    longest = "/".join(["x" * 200, "y" * 200, "z" * 200, "0" * 90])
    store.put(longest, b"long")
    assert store.get(longest) == b"long"


def check_separate(open_store: OpenStore) -> None:
    """Stores of different names do not see each other, also when one name is the start of the other."""
    first, second = open_store("same"), open_store("same-longer")
    first.put("key", b"1")
    second.put("key", b"2")
    second.put("other", b"2")
    assert (first.get("key"), second.get("key")) == (b"1", b"2")
    assert [info.key for info in first.list()] == ["key"]


STORE_CHECKS: tuple[Check, ...] = (
    check_round_trip,
    check_files_as_source,
    check_replacing,
    check_create_once,
    check_one_winner,
    check_listing,
    check_long_listing,
    check_deleting,
    check_missing,
    check_keys,
    check_separate,
)


CHECKPOINT_FILES = {"model.safetensors": b"weights" * 999, "state.json": b"{}"}


def write_checkpoint(run: Any, step: int, content: bytes = b"") -> tuple[str, bytes]:
    """Upload and commit a small checkpoint, its files marked by `content`; returns (attempt, manifest)."""
    attempt, manifest = upload_checkpoint(run, step, content)
    run.commit(step, attempt, manifest)
    return attempt, manifest


def upload_checkpoint(run: Any, step: int, content: bytes = b"") -> tuple[str, bytes]:
    """All of `write_checkpoint` but the commit."""
    attempt = run.new_attempt()
    with tempfile.TemporaryDirectory() as folder:
        for name, data in CHECKPOINT_FILES.items():
            Path(folder, name).write_bytes(data + content + b"%d" % step)
            run.put_checkpoint_file(step, attempt, Path(folder, name))
        return attempt, manifest_bytes(describe(Path(folder), CHECKPOINT_FILES), step)


def stored_content(run: Any, prefix: str = "") -> dict[str, bytes]:
    """Every object of a run, or those below a prefix."""
    return {info.key: run.read_bytes(info.key) for info in run.list(prefix)}


def flip_bit(run: Any, key: str) -> None:
    """Replace an object by one that differs in a bit in its middle."""
    data = bytearray(run.read_bytes(key))
    data[len(data) // 2] ^= 1
    run.write_bytes(key, bytes(data))


def truncate(run: Any, key: str) -> None:
    """Cut the last byte off an object."""
    run.write_bytes(key, run.read_bytes(key)[:-1])


def halve(run: Any, key: str) -> None:
    """Cut off the second half of an object."""
    data = run.read_bytes(key)
    run.write_bytes(key, data[: len(data) // 2])


def remove(run: Any, key: str) -> None:
    """Delete an object behind the protocol's back."""
    run.store.objects.delete(f"{run.name}/{key}")


def check_runs(open_store: OpenStore) -> None:
    """A run is listed from its config.json on; settings and results come back; a name cannot be a path."""
    store = open_store("runs")
    store.check_writable()
    assert store.runs() == []
    for name in ("b-0001", "a-0001"):
        run = store.run(name)
        assert not run.exists()
        expect_error(EbmError, run.read_config)
        run.write_config({"name": name, "seed": 1, "nested": {"x": [1.5, None, True]}})
        run.write_json("evaluations/step-000000005/energy_gap.json", {"value": 0.25})
    store.run("c").write_bytes("stray", b"not a run")
    again = open_store("runs")
    assert again.runs() == ["a-0001", "b-0001"]
    run = again.run("a-0001")
    assert run.exists()
    assert run.read_config() == {"name": "a-0001", "seed": 1, "nested": {"x": [1.5, None, True]}}
    assert run.read_json("evaluations/step-000000005/energy_gap.json") == {"value": 0.25}
    assert [info.key for info in run.list("evaluations/")] == ["evaluations/step-000000005/energy_gap.json"]
    assert run.uri.partition("?")[0] == again.uri.partition("?")[0] + "/a-0001"
    for name in (*BAD_KEYS, "a/b", "x" * 129):
        expect_error(EbmError, store.run, name)


def check_run_keys(open_store: OpenStore) -> None:
    """No key of a run reaches another run or leaves the store, whichever call it is given to."""
    store = open_store("run-keys")
    store.run("other").write_config({"name": "other"})
    run = store.run("r")
    run.write_config({"name": "r"})
    before = {info.key: info.size for info in store.objects.list()}
    for key in ("../other/config.json", "checkpoints/../../other/config.json", *BAD_KEYS):
        expect_error(EbmError, run.write_bytes, key, b"evil")
        expect_error(EbmError, run.write_json, key, {})
        expect_error(EbmError, run.read_bytes, key)
        expect_error(EbmError, run.read_json, key)
        expect_error(EbmError, run.delete, key)
        if key not in ("", "a/"):  # prefixes that a listing may have
            expect_error(EbmError, lambda key=key: list(run.list(key)))
        for attempt in (key, f"attempt-0123456789abcdef/{key}"):
            expect_error(EbmError, run.commit, 1, attempt, manifest_bytes(_ONE_FILE, 1))
        with tempfile.TemporaryDirectory() as folder:
            expect_error(EbmError, run.put_checkpoint_file, 1, key, Path(folder, "model.safetensors"))
    for step in (-1, 10**9, True, "../other", 1.0):
        expect_error(EbmError, run.at, step)
    assert {info.key: info.size for info in store.objects.list()} == before


_ONE_FILE = (FileEntry("state.json", 2, hashlib.sha256(b"{}").hexdigest()),)


def check_commit(open_store: OpenStore) -> None:
    """A checkpoint is invisible before its commit and complete after it, with the layout that readers rely on."""
    run = open_store("commit").run("r")
    assert run.checkpoints() == []
    with tempfile.TemporaryDirectory() as folder:
        assert run.newest_sound(Path(folder)) is None
        attempt, manifest = upload_checkpoint(run, 500)
        assert run.checkpoints() == []
        expect_error(CheckpointError, run.fetch_checkpoint, 500, Path(folder))
        assert run.newest_sound(Path(folder)) is None
        run.commit(500, attempt, manifest)
        write_checkpoint(run, 1000)
        assert open_store("commit").run("r").checkpoints() == [500, 1000]
        fetched = run.fetch_checkpoint(500, Path(folder))
        assert verify(fetched).step == 500
        assert {p.name for p in fetched.iterdir()} == {*CHECKPOINT_FILES, MANIFEST_NAME}
        assert (fetched / "model.safetensors").read_bytes() == CHECKPOINT_FILES["model.safetensors"] + b"500"
        step, path = run.newest_sound(Path(folder))
        assert (step, verify(path).step) == (1000, 1000)
    committed = json.loads(run.read_bytes("checkpoints/step-000000500/COMMITTED"))
    assert (committed["attempt"], committed["step"]) == (attempt, 500)
    assert committed["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert run.read_bytes(f"checkpoints/step-000000500/{attempt}/{MANIFEST_NAME}") == manifest


def check_commit_again(open_store: OpenStore) -> None:
    """The same content commits again without effect; other content is refused and what was first stays."""
    run = open_store("commit-again").run("r")
    attempt, manifest = write_checkpoint(run, 1)
    committed = run.read_bytes("checkpoints/step-000000001/COMMITTED")
    run.commit(1, attempt, manifest)
    write_checkpoint(run, 1)
    assert "two jobs" in expect_error(EbmError, write_checkpoint, run, 1, b"other")
    assert run.read_bytes("checkpoints/step-000000001/COMMITTED") == committed


def check_commit_race(open_store: OpenStore) -> None:
    """Of several attempts with different content one is committed, whole, and every other is told."""
    runs = [open_store("commit-race").run("r") for _ in range(4)]
    attempts = [upload_checkpoint(run, 7, b"racer %d " % number) for number, run in enumerate(runs)]
    barrier = Barrier(len(runs))

    def race(number: int) -> bool:
        barrier.wait()
        try:
            runs[number].commit(7, *attempts[number])
        except EbmError:
            return False
        return True

    with ThreadPoolExecutor(len(runs)) as pool:
        won = list(pool.map(race, range(len(runs))))
    assert won.count(True) == 1, f"{won.count(True)} of {len(runs)} attempts were told that they are the checkpoint"
    with tempfile.TemporaryDirectory() as folder:
        content = (runs[0].fetch_checkpoint(7, Path(folder)) / "state.json").read_bytes()
    assert content == b"{}racer %d 7" % won.index(True)


def check_incomplete_commit(open_store: OpenStore) -> None:
    """A manifest that names what was not uploaded whole, or another step, makes nothing visible."""
    run = open_store("incomplete").run("r")
    for damage in (remove, truncate):
        attempt, manifest = upload_checkpoint(run, 3)
        damage(run, f"checkpoints/step-000000003/{attempt}/state.json")
        assert "state.json" in expect_error(EbmError, run.commit, 3, attempt, manifest)
    attempt, manifest = upload_checkpoint(run, 3)
    expect_error(EbmError, run.commit, 4, attempt, manifest)
    expect_error(EbmError, run.commit, 3, attempt, manifest[:-1])
    expect_error(EbmError, run.commit, 3, "../attempt", manifest)
    expect_error(EbmError, run.commit, -1, attempt, manifest)
    assert run.checkpoints() == []


def check_damage(open_store: OpenStore) -> None:
    """A flipped bit, a lost byte and a lost file are noticed in every file of a checkpoint, by name."""
    run = open_store("damage").run("r")
    attempt, _ = write_checkpoint(run, 1)
    folder = "checkpoints/step-000000001/"
    with tempfile.TemporaryDirectory() as into:
        for name in (*CHECKPOINT_FILES, MANIFEST_NAME, "COMMITTED"):
            key = folder + (name if name == "COMMITTED" else f"{attempt}/{name}")
            sound = run.read_bytes(key)
            for damage in (flip_bit, truncate, remove):
                damage(run, key)
                if (name, damage) != ("COMMITTED", truncate):  # it loses its final newline, and no meaning
                    message = expect_error(CheckpointError, run.fetch_checkpoint, 1, Path(into))
                    assert name in message or (name, damage) == ("COMMITTED", remove), f"{message!r} misses {name}"
                    assert not list(Path(into).iterdir()), "a damaged download was left behind"
                run.write_bytes(key, sound)
        run.fetch_checkpoint(1, Path(into))


DAMAGES = (flip_bit, halve, remove)


def checkpoint_keys(step: int, attempt: str) -> list[str]:
    """Keys of every file of a checkpoint, MANIFEST.json and COMMITTED among them."""
    folder = f"checkpoints/step-{step:09d}/"
    return [*(f"{folder}{attempt}/{name}" for name in (*CHECKPOINT_FILES, MANIFEST_NAME)), f"{folder}COMMITTED"]


def check_setting_aside(open_store: OpenStore) -> None:
    """Whatever was done to whichever file, the older checkpoint is used, with a message; nothing else changes."""
    run = open_store("set-aside").run("r")
    write_checkpoint(run, 1)
    cases = [(number, damage) for number in range(len(CHECKPOINT_FILES) + 2) for damage in DAMAGES]
    for step, (number, damage) in enumerate(cases, start=2):
        attempt, _ = write_checkpoint(run, step)
        folder = f"checkpoints/step-{step:09d}/"
        key = checkpoint_keys(step, attempt)[number]
        name = key.rpartition("/")[2]
        damage(run, key)
        before, messages = stored_content(run), []
        with tempfile.TemporaryDirectory() as into:
            found, path = run.newest_sound(Path(into), messages.append)
            assert (found, verify(path).step) == (1, 1), f"step {found} was taken for the newest sound one"
            assert len(messages) == 1, messages
            assert name in messages[0], f"{messages[0]!r} does not name the file"
            assert folder.rstrip("/") in messages[0], f"{messages[0]!r} does not name the step"
            run.newest_sound(Path(into), messages.append)
        assert run.checkpoints() == [1]
        after = stored_content(run)
        if (name, damage) == ("COMMITTED", remove):  # nothing is left that could be condemned
            assert messages[1:] == messages[:1]
        else:
            assert len(messages) == 1, "what is known was said again"
            assert name in json.loads(after.pop(folder + "DAMAGED"))["reason"]
        assert after == before, "looking for a sound checkpoint changed something"
        for other in run.list(folder):
            remove(run, other.key)


def check_all_damaged(open_store: OpenStore) -> None:
    """When no checkpoint is sound that is an error, now and later, never a fresh start; nothing is overwritten."""
    for number in range(len(CHECKPOINT_FILES) + 2):
        for damage in DAMAGES:
            run = open_store(f"all-damaged-{number}-{damage.__name__}").run("r")
            for step in (1, 2):
                attempt, _ = write_checkpoint(run, step)
                damage(run, checkpoint_keys(step, attempt)[number])
            before, messages = stored_content(run), []
            words = "whole checkpoints and no COMMITTED" if not run.checkpoints() else "all are damaged"
            with tempfile.TemporaryDirectory() as into:
                for _ in range(2):
                    assert words in expect_error(CheckpointError, run.newest_sound, Path(into), messages.append)
            assert len(messages) == (0 if words.startswith("whole") else 2), messages
            after = {key: data for key, data in stored_content(run).items() if not key.endswith("DAMAGED")}
            assert after == before, "looking for a sound checkpoint changed something"


def check_commit_over_damage(open_store: OpenStore) -> None:
    """A step that was set aside can be written again by the resumed job, and is sound then."""
    run = open_store("over-damage").run("r")
    write_checkpoint(run, 1)
    attempt, _ = write_checkpoint(run, 2)
    flip_bit(run, f"checkpoints/step-000000002/{attempt}/model.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        assert run.newest_sound(Path(folder), lambda message: None)[0] == 1
        write_checkpoint(run, 2)
        assert run.checkpoints() == [1, 2]
        assert run.newest_sound(Path(folder))[0] == 2
    assert run.read_bytes(f"checkpoints/step-000000002/{attempt}/state.json"), "the damaged files must stay"


def check_retention(open_store: OpenStore) -> None:
    """The newest sound ones stay; nothing goes while fewer than two are sound; leftovers of old attempts go."""
    run = open_store("retain").run("r")
    upload_checkpoint(run, 1)
    for step in (2, 3, 4, 5):
        attempt, _ = write_checkpoint(run, step)
    late, _ = upload_checkpoint(run, 6)
    flip_bit(run, f"checkpoints/step-000000005/{attempt}/model.safetensors")
    messages: list[str] = []
    assert run.retain(2, messages.append, spared=[2]) == []
    assert run.checkpoints() == [2, 3, 4], "a spared one was deleted"
    assert run.retain(2, messages.append) == [2]
    assert len(messages) == 1, messages
    assert "step-000000005" in messages[0], messages
    assert run.checkpoints() == [3, 4]
    steps = {info.key.split("/")[1] for info in run.list("checkpoints/")}
    assert steps == {f"step-{step:09d}" for step in (3, 4, 5, 6)}, steps
    assert any(late in info.key for info in run.list("checkpoints/step-000000006/")), "an upload under way was deleted"
    assert run.retain(2) == []
    for keep in (1, 0, -1, True, 2.0):
        expect_error(EbmError, run.retain, keep)
    with tempfile.TemporaryDirectory() as folder:
        assert verify(run.fetch_checkpoint(3, Path(folder))).step == 3


def check_retention_of_unsound(open_store: OpenStore) -> None:
    """With only one sound checkpoint among many, all stay."""
    run = open_store("retain-unsound").run("r")
    for step in (1, 2, 3, 4):
        attempt, _ = write_checkpoint(run, step)
        if step > 1:
            remove(run, f"checkpoints/step-{step:09d}/{attempt}/model.safetensors")
    messages: list[str] = []
    assert run.retain(2, messages.append) == []
    assert len(messages) == 3
    assert run.checkpoints() == [1]


RUN_CHECKS: tuple[Check, ...] = (
    check_runs,
    check_run_keys,
    check_commit,
    check_commit_again,
    check_commit_race,
    check_incomplete_commit,
    check_damage,
    check_setting_aside,
    check_all_damaged,
    check_commit_over_damage,
    check_retention,
    check_retention_of_unsound,
)
