"""Published files: where they lie, what their checksums are, and the one line that says what is missing."""

import hashlib
import shlex
from collections.abc import Iterable
from pathlib import Path

from ebm_core.config import DataConfig
from ebm_core.errors import DataError

MD5 = {
    "MNIST/raw/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "MNIST/raw/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "MNIST/raw/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "MNIST/raw/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "FashionMNIST/raw/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "FashionMNIST/raw/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "FashionMNIST/raw/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
"""MD5 sums of the published files by path under data.root, in torchvision's layout; those that torchvision checks."""


def download_command(cfg: DataConfig) -> str:
    """What to type to get the files."""
    return f"ebm data download {cfg.name} data.root={shlex.quote(cfg.root)}"


def missing(cfg: DataConfig, folder: Path, what: str) -> DataError:
    """The error for files that are not there: the folder looked in and the command that gets them."""
    return DataError(f"{cfg.name}: no {what} in {folder}; get the files with: {download_command(cfg)}")


def require_files(cfg: DataConfig, names: Iterable[str]) -> list[Path]:
    """Paths of files under data.root, or the DataError of `missing` for the first that is absent."""
    paths = [Path(cfg.root, name) for name in names]
    for path in paths:
        if not path.is_file():
            raise missing(cfg, path.parent, path.name)
    return paths


def read_checked(cfg: DataConfig, path: Path, md5: str | None) -> bytes:
    """The content of a file whose MD5 sum is as published (None: none is published). DataError names the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 is not None and found != md5:
        raise DataError(
            f"{path}: MD5 sum {found} is not the published {md5}, so the file is cut off or altered; "
            f"delete it and run: {download_command(cfg)}"
        )
    return content
