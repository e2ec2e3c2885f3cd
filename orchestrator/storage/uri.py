"""From what a person writes in `storage=` to an object store. A URI never carries credentials."""

import os
from pathlib import Path
from urllib.parse import unquote

from ebm_core.errors import ConfigError
from ebm_core.places import parse_s3, require_endpoint
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.interface import ObjectStore


def open_objects(uri: str) -> ObjectStore:
    """The store at a folder (`./runs`, `file:///data/runs`) or `s3://bucket/prefix[?endpoint_url=http://host:port]`.

    Without `endpoint_url`, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL name the server, AWS is the default. Nothing is
    contacted yet. Raises ConfigError for a URI that means nothing, StorageError for a path that is no folder.
    """
    if not isinstance(uri, str) or not uri or any(ord(c) < 32 for c in uri):
        raise ConfigError("storage: must be a folder or s3://BUCKET/PREFIX, without control characters")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return FolderStore(Path(uri).expanduser())
    if scheme == "file":
        return FolderStore(_file_path(rest))
    if scheme == "s3":
        return _open_s3(uri)
    raise ConfigError(f"storage: unknown scheme {scheme[:20]!r}; use a folder, file:///FOLDER or s3://BUCKET/PREFIX")


def _file_path(rest: str) -> Path:
    path = unquote(rest.removeprefix("localhost"))
    if not path.startswith("/") or any(c in path for c in "\0?#"):
        raise ConfigError(f"storage: file://{rest!r:.80} is not file:///FOLDER; write the folder's absolute path")
    return Path(path)


def _open_s3(uri: str) -> ObjectStore:
    try:
        place = parse_s3(uri)
        endpoint = place.endpoint
        for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            if endpoint is None and os.environ.get(variable):
                endpoint = require_endpoint(os.environ[variable], variable)
    except ConfigError as why:
        raise ConfigError(f"storage: {why}") from None
    from orchestrator.storage.s3 import S3Store  # boto3 takes its time; folders do without

    return S3Store(place.bucket, place.prefix, endpoint, location=place.uri)
