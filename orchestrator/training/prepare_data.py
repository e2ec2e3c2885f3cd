"""`ebm data prepare`: a data set once decoded, brought to the model's size and stored, for training to stream."""

from collections.abc import Callable
from dataclasses import replace

from ebm_core.config import DataConfig
from ebm_core.data import Dataset, check_files, load
from ebm_core.data.shards import (
    MANIFEST,
    PreparedSet,
    ShardFile,
    SplitFiles,
    digest,
    encoded_shards,
    encoded_table,
    preparation_order,
)
from ebm_core.errors import ConfigError
from orchestrator.storage.interface import ObjectStore
from orchestrator.storage.uri import open_objects


def prepare(cfg: DataConfig, to: str, say: Callable[[str], None] = lambda text: None) -> PreparedSet:
    """Store both splits of the set that `cfg` names at `to`, a folder or s3://bucket/prefix; its description last.

    say: told each file. What an interrupted call left is written again. Raises ConfigError where a set lies already,
    DataError for missing or damaged files, StorageError for a store that cannot be written.
    """
    replace(cfg, root=to)  # what could not be read back is not written
    objects = open_objects(to)
    if objects.exists(MANIFEST):
        raise ConfigError(f"`to` {objects.describe()}: a prepared set is there already; choose another place")
    check_files(cfg)
    train, test = load(cfg, "train"), load(cfg, "test")
    description = PreparedSet(
        name=cfg.name,
        image_size=cfg.image_size,
        channels=cfg.channels,
        class_names=train.class_names,
        attribute_names=train.attribute_names,
        train=_stored(train, objects, say),
        test=_stored(test, objects, say),
    )
    if not objects.create(MANIFEST, description.to_bytes()):
        raise ConfigError(f"`to` {objects.describe()}: another program has prepared a set there; choose another place")
    return description


def _stored(dataset: Dataset, objects: ObjectStore, say: Callable[[str], None]) -> SplitFiles:
    order = preparation_order(dataset)
    shards: list[ShardFile] = []

    def put(name: str, content: bytes, num_images: int) -> ShardFile:
        objects.put(name, content)
        say(f"{name}  {num_images:,} images  {len(content) / 1e6:.1f} MB")
        return ShardFile(name=name, num_images=num_images, sha256=digest(content))

    for content, num_images in encoded_shards(dataset, order):
        shards.append(put(f"{dataset.split}-{len(shards):05d}.parquet", content, num_images))
    return SplitFiles(
        shards=tuple(shards),
        table=put(f"{dataset.split}-table.parquet", encoded_table(dataset, order), len(dataset)),
        shuffled=bool((order[1:] < order[:-1]).any()),
        source_fingerprint=dataset.fingerprint(),
    )
