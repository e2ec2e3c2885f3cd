"""Kept tensors come back as they were written, or not at all."""

import numpy as np

from workers.features import kept


def test_what_is_read_is_what_was_written(tmp_path):
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(0.1)}
    kept.write(tmp_path / "new" / "one", tensors)
    found = kept.read(tmp_path / "new" / "one")
    assert found is not None
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one"]  # nothing half written is left


def test_a_changed_bit_a_cut_file_and_a_missing_one_are_not_served(tmp_path):
    path = tmp_path / "one"
    kept.write(path, {"x": np.arange(100.0)})
    data = path.read_bytes()
    for content in (data[:-1] + bytes([data[-1] ^ 1]), data[:-8], b"", b"text"):
        path.write_bytes(content)
        assert kept.read(path) is None
    assert kept.read(tmp_path / "none") is None


def test_a_folder_that_takes_nothing_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    kept.write(tmp_path / "file" / "one", {"x": np.zeros(3)})
    assert kept.read(tmp_path / "file" / "one") is None


def test_the_digest_tells_order_of_names_from_values():
    one, other = np.zeros(2), np.ones(2)
    assert kept.digest({"a": one, "b": other}) == kept.digest({"b": other, "a": one})
    assert kept.digest({"a": one, "b": other}) != kept.digest({"a": other, "b": one})
