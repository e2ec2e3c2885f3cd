"""LSUN's bedrooms from the published LMDB files, decoded when they are fetched."""

from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebm_core.config import DataConfig
from ebm_core.data.dataset import Dataset, remembered
from ebm_core.data.files import missing
from ebm_core.data.images import decode, fit
from ebm_core.errors import DataError


def lsun_bedroom(cfg: DataConfig, split: str) -> Dataset:
    """LSUN bedrooms, data.root/bedroom_train_lmdb and bedroom_val_lmdb (the test split): 3,033,042 and 300 images, in
    the order of their keys. With data.limit only so many keys are read, which is quick."""
    folder = _folder(cfg, split)
    database = _open(str(folder.resolve()))
    with database.begin() as view:
        limit = cfg.limit if split == "train" else None
        keys: list[bytes] = list(islice(view.cursor().iternext(keys=True, values=False), limit))
    if not keys:
        raise missing(cfg, folder, "images")
    shape = (cfg.channels, cfg.image_size, cfg.image_size)

    def read(index: Tensor) -> Tensor:
        images = torch.empty((len(index), *shape), dtype=torch.uint8)
        with database.begin() as view:
            for row, i in enumerate(index.tolist()):
                levels = decode(bytes(view.get(keys[i])), f"{folder}, key {keys[i].decode('latin1')}")
                images[row] = fit(levels.unsqueeze(0), cfg.image_size, cfg.channels)[0]
        return images

    return Dataset(
        cfg=cfg,
        split=split,
        num_images=len(keys),
        read=remembered(read, len(keys), shape),
        content=lambda num_images: (key + b"\n" for key in keys[:num_images]),
    )


def check_lsun(cfg: DataConfig) -> None:
    """Both databases are there."""
    for split in ("train", "test"):
        _folder(cfg, split)


def _folder(cfg: DataConfig, split: str) -> Path:
    folder = Path(cfg.root, "bedroom_train_lmdb" if split == "train" else "bedroom_val_lmdb")
    if not (folder / "data.mdb").is_file():
        raise missing(cfg, folder, "data.mdb")
    return folder


@cache
def _open(folder: str) -> Any:
    """A database may be open once per process, so that is what happens."""
    import lmdb

    try:
        return lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise DataError(f"{folder}: not a readable LMDB database ({error}); unpack LSUN's archive again") from error
