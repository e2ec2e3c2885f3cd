"""Reading a prepared set (`shards.py`): whole into memory where it fits, shard by shard where it does not.

Training draws from a set that fits exactly what it draws from the published files. A larger one is shuffled by windows
of shards (`batches.py`): a shard is read once per epoch, and ahead of its use.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ebm_core.config import DataConfig
from ebm_core.data.dataset import MEMORY_BYTES, Dataset
from ebm_core.data.shards import (
    MANIFEST,
    SHARD_BYTES,
    PreparedSet,
    ShardFile,
    decoded_images,
    decoded_table,
    digest,
    parse,
)
from ebm_core.errors import DataError
from ebm_core.places import parse_s3
from ebm_core.types import ImageShape, Pixels

WINDOW = MEMORY_BYTES // 2 // SHARD_BYTES
"""Shards among which images are shuffled; two windows are in memory, the one in use and the next."""
READERS = 4
"""Shards that are read at the same time."""


def is_prepared(root: str) -> bool:
    """Whether data.root holds what `ebm data prepare` wrote: any place on a server, a folder with its description."""
    return "://" in root or Path(root, MANIFEST).is_file()


def absolute_root(root: str) -> str:
    """`data.root` as other processes can use it."""
    return root if "://" in root else str(Path(root).expanduser().absolute())


def read_manifest(cfg: DataConfig) -> PreparedSet:
    """The description of the set at data.root. DataError if there is none, or if it is not the set that `cfg` wants."""
    place = Place(cfg.root)
    found = parse(place.read(MANIFEST), place.describe(MANIFEST))
    for setting, value in (("name", found.name), ("image_size", found.image_size), ("channels", found.channels)):
        if getattr(cfg, setting) != value:
            raise DataError(
                f"{place.describe()}: prepared with data.{setting} = {value}, wanted is {getattr(cfg, setting)}; "
                "set it so, or prepare another place"
            )
    return found


def prepared(cfg: DataConfig, split: str) -> Dataset:
    """The split of the set that lies prepared at data.root."""
    manifest, place = read_manifest(cfg), Place(cfg.root)
    files = manifest.split(split)
    where = place.describe(files.table.name)
    table = decoded_table(place.verified(files.table), files.num_images, manifest.attribute_names, where)
    shape = (cfg.channels, cfg.image_size, cfg.image_size)
    fits = files.num_images * cfg.channels * cfg.image_size**2 <= MEMORY_BYTES
    reader = ShardReader(place, files.shards, shape, len(files.shards) if fits else 2 * WINDOW)
    return Dataset(
        cfg=cfg,
        split=split,
        num_images=files.num_images,
        read=reader.read,
        content=lambda num: [repr(num).encode(), *(shard.sha256.encode() for shard in files.shards)],
        labels=table.labels,
        class_names=manifest.class_names,
        attributes=table.attributes,
        attribute_names=manifest.attribute_names,
        factors=table.factors,
        shards=() if fits else tuple(shard.num_images for shard in files.shards),
        expect=None if fits else reader.expect,
    )


class Place:
    """A folder, or s3://bucket/prefix through Arrow's client, with AWS's usual credentials from the environment."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._s3 = parse_s3(root) if "://" in root else None

    def describe(self, name: str = "") -> str:
        """The place, or a file in it, for people."""
        base, question, query = self._root.partition("?")
        return "/".join(filter(None, (base.rstrip("/"), name))) + (question + query if not name else "")

    def read(self, name: str) -> bytes:
        """The content of a file. DataError in one line if it cannot be had."""
        with self._explained(name):
            if self._s3 is None:
                return Path(self._root, name).read_bytes()
            bucket, prefix, endpoint = self._s3
            path = "/".join(filter(None, (bucket, prefix, name)))
            with _arrow_s3(bucket, endpoint).open_input_file(path) as file:
                return file.read()

    def verified(self, file: ShardFile) -> bytes:
        """The content that the description promises. DataError for any other."""
        content = self.read(file.name)
        if digest(content) != file.sha256:
            raise DataError(f"{self.describe(file.name)}: not what {MANIFEST} describes; prepare the set again")
        return content

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if name == MANIFEST:
                raise DataError(
                    f"no prepared set in {self.describe()}; make one: ebm data prepare NAME --to {self._root}"
                ) from None
            raise DataError(f"{self.describe(name)}: missing; prepare the set again") from None
        except OSError as error:
            reason = " ".join(str(error.strerror or error).split())[:300]
            raise DataError(f"{self.describe(name)}: cannot be read ({reason})") from None


@lru_cache(maxsize=8)
def _arrow_s3(bucket: str, endpoint: str | None) -> Any:
    """One client per server: a bucket decides the region where no variable does."""
    from urllib.parse import urlsplit

    from pyarrow import fs

    named = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    server = urlsplit(named)
    scheme, host = (server.scheme, server.netloc) if server.netloc else (None, None)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and host is None:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=host,
        scheme=scheme or "https",
        connect_timeout=5,
        request_timeout=30,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=5),
    )


class ShardReader:
    """Images by number, from shards of which at most `keep` are in memory: the last ones used or expected."""

    def __init__(self, place: Place, files: Sequence[ShardFile], shape: ImageShape, keep: int) -> None:
        self._place, self._files, self._shape, self._keep = place, files, shape, keep
        self._starts = torch.tensor(list(accumulate((file.num_images for file in files), initial=0)))
        self._threads: ThreadPoolExecutor | None = None
        self._held: OrderedDict[int, Future[Pixels]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, index: Int64[Tensor, "b"]) -> Pixels:
        """Images (b c h w) by number."""
        images = torch.empty((len(index), *self._shape), dtype=torch.uint8)
        shards = self._shards_of(index)
        needed = shards.unique().tolist()
        for first in range(0, len(needed), self._keep):  # a handful of images from everywhere may need more than fit
            held = {number: self._hold(number) for number in needed[first : first + self._keep]}
            for number, future in held.items():
                rows = shards == number
                images[rows] = future.result()[index[rows] - self._starts[number]]
        return images

    def expect(self, index: Int64[Tensor, "b"]) -> None:
        """Begin to read the shards of these images. What fails now is tried again, and told, when they are read."""
        for number in self._shards_of(index).unique().tolist():
            self._hold(number)

    def _shards_of(self, index: Tensor) -> Tensor:
        return torch.searchsorted(self._starts, index, right=True) - 1

    def _hold(self, number: int) -> "Future[Pixels]":
        with self._lock:
            held = self._held.get(number)
            if held is None or (held.done() and held.exception() is not None):
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="ebm-shards")
                held = self._threads.submit(self._fetched, self._files[number])
                self._held[number] = held
            self._held.move_to_end(number)
            while len(self._held) > self._keep:
                self._held.popitem(last=False)
            return held

    def _fetched(self, file: ShardFile) -> Pixels:
        where = self._place.describe(file.name)
        images = decoded_images(self._place.verified(file), self._shape, where)
        if len(images) != file.num_images:
            raise DataError(f"{where}: {len(images)} images, not the {file.num_images} of {MANIFEST}; prepare it again")
        return images
