"""Whatever bytes and words arrive: a clear error or a sound value, no other exception, nothing outside the root."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebm_core.config import DataConfig, to_tree
from ebm_core.data.small import fashion_mnist
from ebm_core.errors import ConfigError, DataError, EbmError
from orchestrator.settings.job import JobConfig, parse
from orchestrator.settings.overrides import override
from orchestrator.settings.trees import flatten
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.interface import MAX_KEY_LENGTH, StorageError, is_key
from orchestrator.storage.run_store import require_run_name
from tests.readers import Targets

EXAMPLES = settings(max_examples=60, deadline=None)
PATHS = sorted(flatten(to_tree(JobConfig())))
words = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(("null", "true", "[]", "[1,2]", "1e400", "-0", "nan", "inf", "../x", "a\0b", "{}")),
)
messages = st.one_of(st.sampled_from(PATHS), st.text(max_size=20))


@EXAMPLES
@given(st.lists(st.tuples(messages, words), max_size=3))
def test_any_setting_is_refused_in_one_line_or_makes_a_job_that_survives_its_own_tree(pairs: list[tuple[str, str]]):
    try:
        job = override(JobConfig(), [f"{path}={value}" for path, value in pairs])
    except ConfigError as error:
        assert 0 < len(str(error)) < 3000
        assert not any(c in str(error) for c in "\0")
        return
    assert parse(to_tree(job)) == job


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@EXAMPLES
@given(st.sampled_from(PATHS), trees)
def test_any_value_in_a_stored_config_is_refused_or_kept(path: str, value: object):
    tree = to_tree(JobConfig())
    *sections, leaf = path.split(".")
    branch = tree
    for section in sections:
        branch = branch[section]
    branch[leaf] = value
    with suppress(ConfigError):
        parse(parse_again := to_tree(parse(tree)))
        assert parse_again


keys = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(("a", "..", ".", "", "B-1", "\\", "․․", "／", "\0", "~", "%2e", "c:", "é")), max_size=6
    ).map("/".join),
)


@EXAMPLES
@given(keys, st.sampled_from(("put", "create", "get", "delete", "exists", "size")))
def test_any_key_is_refused_or_lies_below_the_root(key: str, operation: str):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "outer", "root")
        root.mkdir(parents=True)
        store = FolderStore(root)
        arguments = (key, b"x") if operation in ("put", "create") else (key,)
        try:
            getattr(store, operation)(*arguments)
        except StorageError as error:
            assert "\n" not in str(error)
            assert "\0" not in str(error)
        else:
            assert is_key(key)
            assert len(key) <= MAX_KEY_LENGTH
        outside = [Path(base, name) for base, _, names in os.walk(folder) for name in names]
        assert all(path.is_relative_to(root) for path in outside)
        assert [path.name for path in Path(folder).iterdir()] == ["outer"]
        with suppress(ConfigError):
            assert "/" not in require_run_name(key)


@pytest.fixture(scope="module")
def targets() -> Iterator[Targets]:
    with tempfile.TemporaryDirectory() as scratch:
        yield Targets(Path(scratch))


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change of some bytes: overwritten, cut out, put in, or all of them new."""
    kind, junk = draw(st.sampled_from(("overwrite", "cut", "insert", "replace"))), draw(st.binary(max_size=12))
    place, length = draw(st.floats(0, 1)), draw(st.integers(1, 200))

    def change(data: bytes) -> bytes:
        at = int(place * place * len(data))  # more often near the head, where the structure is
        rest = {"overwrite": at + len(junk), "cut": at + length, "insert": at, "replace": len(data)}[kind]
        return (b"" if kind == "replace" else data[:at]) + (b"" if kind == "cut" else junk) + data[rest:]

    return change


@settings(max_examples=300, deadline=None)
@given(data=st.data(), damage=damages())
def test_readers_of_stored_files_refuse_what_was_changed_by_an_error_of_ours(
    targets: Targets, data: st.DataObject, damage: Callable[[bytes], bytes]
):
    name = data.draw(st.sampled_from(sorted(targets.all())))
    targets.all()[name](damage(targets.seed(name)))


@EXAMPLES
@given(damage=damages(), which=st.integers(0, 3))
def test_a_changed_data_file_is_refused_or_read_whole(damage: Callable[[bytes], bytes], which: int):
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "FashionMNIST", "raw")
        folder.mkdir(parents=True)
        head = {"images-idx3": bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28)) + bytes(2 * 784)}
        head["labels-idx1"] = bytes((0, 0, 8, 1, 0, 0, 0, 2, 3, 4))
        for number, (part, kind) in enumerate((p, k) for p in ("train", "t10k") for k in head):
            content = damage(head[kind]) if number == which else head[kind]
            (folder / f"{part}-{kind}-ubyte").write_bytes(content)
        cfg = DataConfig(name="fashion_mnist", root=root, image_size=28, channels=1)
        for split in ("train", "test"):
            try:
                images = fashion_mnist(cfg, split, {})
            except DataError as error:
                assert root in str(error)
            else:
                assert len(images) == 2


def test_the_targets_accept_what_they_begin_with(targets: Targets, monkeypatch: pytest.MonkeyPatch):
    # Otherwise the tests above would change what is refused anyway.
    refused: list[str] = []

    original = EbmError.__init__

    def noted(self: EbmError, *arguments: object) -> None:
        refused.append(str(arguments))
        original(self, *arguments)

    monkeypatch.setattr(EbmError, "__init__", noted)
    for name, target in targets.all().items():
        target(targets.seed(name))
        assert refused == [], name
