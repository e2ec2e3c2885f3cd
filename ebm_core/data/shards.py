"""The format of a prepared set: images of one shape as Parquet files, and one JSON that describes them.

Any tool that reads Parquet reads them: a row per image with `image`, its pixels as bytes in the order (c h w), and its
`label`, `attribute:NAME` and `factor:NAME` where the set has them. The JSON is written last: no set is without it.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ebm_core.config import from_tree
from ebm_core.data.dataset import MEMORY_BYTES, Dataset
from ebm_core.errors import ConfigError, DataError, first_line
from ebm_core.rng import stream
from ebm_core.types import ImageShape, Pixels

MANIFEST = "prepared.json"
FORMAT = 1
SHARD_BYTES = 16 * 2**20
"""Most bytes of pixels in a file shard, one Parquet file of a prepared set (here: shard)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """One file of a prepared set."""

    name: str
    num_images: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFiles:
    """A split: its shards in the order of the images, and one file with all columns but `image`."""

    shards: tuple[ShardFile, ...]
    table: ShardFile
    shuffled: bool
    """Whether the order is another than the source's, as for a split that memory does not hold."""
    source_fingerprint: str
    """`Dataset.fingerprint` of what was prepared."""

    @property
    def num_images(self) -> int:
        """Images of all shards."""
        return sum(shard.num_images for shard in self.shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedSet:
    """The content of MANIFEST."""

    name: str
    """The data set's key in DATASETS."""
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    train: SplitFiles
    test: SplitFiles
    format: int = field(default=FORMAT)

    def split(self, name: str) -> SplitFiles:
        """The files of `train` or `test`."""
        return self.train if name == "train" else self.test

    def to_bytes(self) -> bytes:
        """As JSON; `parse` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False).encode()


def parse(content: bytes, where: str) -> PreparedSet:
    """The set that `to_bytes` described. DataError with the name `where` for anything else."""
    try:
        tree: Any = json.loads(content)
        if isinstance(tree, dict) and tree.get("format", FORMAT) != FORMAT:
            raise ConfigError(f"format {tree['format']!r} is not {FORMAT}; use the version that wrote it")
        found = from_tree(PreparedSet, tree)
        names = [file.name for split in (found.train, found.test) for file in (*split.shards, split.table)]
        if any("/" in name or name.startswith(".") for name in names) or len(set(names)) < len(names):
            raise ConfigError("a file outside of it, or one twice")
        for split in (found.train, found.test):
            if min((shard.num_images for shard in split.shards), default=0) < 1:
                raise ConfigError("a split or a shard without images")
            if split.table.num_images != split.num_images:
                raise ConfigError("another number of images in the shards than in the table")
    except (ValueError, TypeError, RecursionError, ConfigError) as error:
        what = f"not the description of a prepared set ({first_line(error):.200})"
        raise DataError(f"{where}: {what}; prepare it again") from None
    return found


def preparation_order(dataset: Dataset) -> Int64[Tensor, "n"]:
    """The order to store images in: the source's where memory holds them all; otherwise one fixed permutation, since
    what is read together must be a mixture and sources are often sorted by class."""
    channels, height, width = dataset.image_shape
    if len(dataset) * channels * height * width <= MEMORY_BYTES:
        return torch.arange(len(dataset))
    return torch.randperm(len(dataset), generator=stream(0, 0, "prepare"))


def encoded_shards(dataset: Dataset, order: Int64[Tensor, "n"]) -> Iterator[tuple[bytes, int]]:
    """(content, number of images) of each shard; one at a time is in memory."""
    channels, height, width = dataset.image_shape
    per_shard = max(1, SHARD_BYTES // (channels * height * width))
    for index in order.split(per_shard):
        yield _parquet(dataset, index, dataset.fetch(index)), len(index)


def encoded_table(dataset: Dataset, order: Int64[Tensor, "n"]) -> bytes:
    """Label, attributes and factors of all images."""
    return _parquet(dataset, order, None)


def digest(content: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(content).hexdigest()


def _parquet(dataset: Dataset, index: Tensor, images: Tensor | None) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"number": index.numpy()}
    if images is not None:
        width = images[0].numel()
        pixels = pa.py_buffer(images.contiguous().numpy())
        columns["image"] = pa.Array.from_buffers(pa.binary(width), len(images), [None, pixels])
    if dataset.labels is not None:
        columns["label"] = dataset.labels[index].numpy()
    if dataset.attributes is not None:
        for name, values in zip(dataset.attribute_names, dataset.attributes[index].T, strict=True):
            columns[f"attribute:{name}"] = values.contiguous().numpy()
    for name, values in dataset.factors.items():
        columns[f"factor:{name}"] = values[index].numpy()
    sink = io.BytesIO()
    small: Any = [name for name in columns if name != "image"]  # pyarrow's stub knows bool alone
    pq.write_table(pa.table(columns), sink, compression="zstd", use_dictionary=small, write_statistics=small)
    return sink.getvalue()


def decoded_images(content: bytes, shape: ImageShape, where: str) -> Pixels:
    """Images (n c h w) of a shard. DataError with the name `where` if it holds others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        column = pq.read_table(pa.BufferReader(content), columns=["image"]).column("image").combine_chunks()
        size = int(np.prod(shape))
        if column.type != pa.binary(size) or column.null_count:
            raise DataError(f"{where}: images of another shape than {shape}; prepare the set again")
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"{where}: not a shard of images ({first_line(error):.200}); prepare the set again") from None
    flat = np.frombuffer(column.buffers()[1], dtype=np.uint8)[column.offset * size :][: len(column) * size]
    return torch.from_numpy(flat.reshape(-1, *shape).copy())


@dataclass(frozen=True, slots=True)
class Table:
    """What is known about each image of a split."""

    labels: Int64[Tensor, "n"] | None
    attributes: Tensor | None
    factors: dict[str, Tensor]


def decoded_table(content: bytes, num_images: int, attribute_names: tuple[str, ...], where: str) -> Table:
    """Labels, attributes (n k) in the order of their names, and factors of so many images. DataError with the name
    `where` if the file holds others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        if len(table) != num_images:
            raise KeyError(f"{len(table)} rows, not {num_images}")
        columns = {name: torch.from_numpy(table.column(name).to_numpy().copy()) for name in table.column_names}
        attributes = [columns[f"attribute:{name}"] for name in attribute_names]
        labels = columns.get("label")
        if labels is not None and labels.dtype != torch.int64:
            raise TypeError(f"labels of type {labels.dtype}")
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{where}: not the table of a prepared set ({first_line(error):.200}); prepare it again"
        ) from None
    factors = {n.removeprefix("factor:"): v for n, v in columns.items() if n.startswith("factor:")}
    return Table(labels, torch.stack(attributes, dim=1) if attributes else None, factors)
