"""Readers of published data files as targets: a small set of each kind on disk, one of whose files is replaced.

The published sums are replaced by those of the files at hand: an attacker who can make a file with the right sum, and
the files that have none, are what is tried here.
"""

import gzip
import hashlib
import io
import pickle
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from ebm_core.config import DataConfig
from ebm_core.data import from_pixels, shards, small
from ebm_core.data.folders import ATTRIBUTE_FILE, CELEBA_ATTRIBUTES, celeba_hq
from ebm_core.data.images import decode
from ebm_core.errors import EbmError

DIGITS = DataConfig(name="digits", image_size=8, channels=1)
Reader = Callable[[bytes], None]


def idx(array: np.ndarray) -> bytes:
    """An array of uint8 as MNIST's files have it."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


class DataTargets:
    """The readers of data files, in a scratch folder of their own."""

    def __init__(self, scratch: Path) -> None:
        self._root = scratch / "data"
        self._seeds: dict[str, bytes] = {}
        self._readers: dict[str, Reader] = {}
        self._idx()
        self._cifar()
        self._svhn()
        self._faces()
        self._images()
        self._prepared()

    def all(self) -> dict[str, Reader]:
        """{name: target}."""
        return self._readers

    def seed(self, name: str) -> bytes:
        """Content that the target accepts."""
        return self._seeds[name]

    def _idx(self) -> None:
        root = self._root / "idx"
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        files = {"images-idx3": idx(np.zeros((2, 28, 28), np.uint8)), "labels-idx1": idx(np.arange(2, dtype=np.uint8))}
        for kind, content in files.items():
            (raw / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
        cfg = DataConfig(name="mnist", root=str(root), image_size=28, channels=1)
        for kind, content in files.items():
            path = raw / f"train-{kind}-ubyte.gz"
            self._add(f"data {kind}", content, root, path, gzip.compress, lambda _: small.mnist(cfg, "train", {}))
            self._add(
                f"data {kind}.gz", gzip.compress(content), root, path, None, lambda _: small.mnist(cfg, "train", {})
            )

    def _cifar(self) -> None:
        root = self._root / "cifar"
        folder = root / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        cfg = DataConfig(name="cifar10", root=str(root))
        batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
        contents = {"test_batch": batch, "batches.meta": {"label_names": [f"c{i}" for i in range(10)]}}
        for name, content in contents.items():
            (folder / name).write_bytes(pickle.dumps(content, protocol=4))
        for name in contents:
            seed = (folder / name).read_bytes()
            self._add(f"data {name}", seed, root, folder / name, None, lambda sums: small.cifar10(cfg, "test", sums))

    def _svhn(self) -> None:
        root = self._root / "svhn"
        root.mkdir(parents=True)
        packed = io.BytesIO()
        savemat(packed, {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((4, 1), np.uint8)}, do_compression=True)
        path = root / "test_32x32.mat"
        path.write_bytes(packed.getvalue())
        cfg = DataConfig(name="svhn", root=str(root))
        self._add("data svhn", packed.getvalue(), root, path, None, lambda sums: small.svhn(cfg, "test", sums))

    def _faces(self) -> None:
        folder = self._root / "faces" / "celeba_hq"
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("L", (16, 16)).save(folder / f"{number}.png")
        rows = [f"{number}.png " + " ".join(["1", "-1"] * 20) for number in range(2)]
        seed = "\n".join(["2", " ".join(CELEBA_ATTRIBUTES), *rows]).encode()
        cfg = DataConfig(name="celeba_hq", root=str(folder.parent), image_size=16)
        self._add("data attributes", seed, folder, folder / ATTRIBUTE_FILE, None, lambda _: celeba_hq(cfg, "train"))

    def _images(self) -> None:
        for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
            packed = io.BytesIO()
            Image.new("RGB", (20, 12), "red").save(packed, kind)
            self._seeds[f"data {kind}"] = packed.getvalue()
            self._readers[f"data {kind}"] = _decode

    def _prepared(self) -> None:
        """A prepared set of two images; what vouches for the files has their true digests."""
        images = from_pixels(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), DIGITS, "train", torch.arange(2), ("a", "b"))
        order = torch.arange(2)
        ((shard, _),) = shards.encoded_shards(images, order)
        file = shards.ShardFile(name="shard", num_images=2, sha256=shards.digest(shard))
        split = shards.SplitFiles(
            shards=(file,), table=replace(file, name="table"), shuffled=False, source_fingerprint=""
        )
        description = shards.PreparedSet(
            name="digits",
            image_size=8,
            channels=1,
            class_names=(),
            attribute_names=(),
            train=split,
            test=replace(split, shards=(replace(file, name="shard2"),), table=replace(file, name="table2")),
        )
        targets: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
            "description": (description.to_bytes(), lambda data: shards.parse(data, "file")),
            "shard": (shard, lambda data: shards.decoded_images(data, (1, 8, 8), "file")),
            "table": (shards.encoded_table(images, order), lambda data: shards.decoded_table(data, 2, (), "file")),
        }
        for name, (seed, parse) in targets.items():
            self._seeds[f"data prepared {name}"] = seed
            self._readers[f"data prepared {name}"] = _quiet(parse)

    def _add(
        self,
        name: str,
        seed: bytes,
        root: Path,
        path: Path,
        pack: Callable[[bytes], bytes] | None,
        load: Callable[[Mapping[str, str]], object],
    ) -> None:
        """A target that puts bytes at `path`, packed first, and loads the set; then the file is as it was."""
        self._seeds[name] = seed
        sound = pack(seed) if pack else seed

        def read(data: bytes) -> None:
            path.write_bytes(pack(data) if pack else data)
            with suppress(EbmError):
                load(_Sums(root))
            path.write_bytes(sound)

        self._readers[name] = read


class _Sums(dict[str, str]):
    """The sum of each file below a root, whatever it holds now."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, name: str) -> str:
        return hashlib.md5((self._root / name).read_bytes(), usedforsecurity=False).hexdigest()


def _quiet(parse: Callable[[bytes], object]) -> Reader:
    def read(data: bytes) -> None:
        with suppress(EbmError):
            parse(data)

    return read


def _decode(data: bytes) -> None:
    with suppress(EbmError):
        assert decode(data, "image").dtype == torch.uint8
