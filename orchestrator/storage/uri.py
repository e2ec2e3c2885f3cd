"""From what a person writes in `storage=` to an object store. A URI never carries credentials."""

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from ebm_core.errors import ConfigError
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.interface import ObjectStore, is_key

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_CREDENTIALS_REMEDY = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and keep them out of the URI, which is stored "
    "and shown; allowed is s3://BUCKET/PREFIX?endpoint_url=http://HOST:PORT"
)


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
    """Parse strictly; a message repeats nothing of a URI that may hold a secret."""
    head, _, query = uri.partition("?")
    if "@" in uri or ":" in head.removeprefix("s3://") or "#" in uri:
        raise ConfigError(f"storage: this s3:// URI has a user, password or port in it; {_CREDENTIALS_REMEDY}")
    options = parse_qsl(query, keep_blank_values=True)
    if [name for name, _ in options] not in ([], ["endpoint_url"]):
        raise ConfigError(f"storage: this s3:// URI has an option other than endpoint_url; {_CREDENTIALS_REMEDY}")
    bucket, _, prefix = head.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError("storage: this s3:// URI names no bucket of 3 to 63 letters, digits, dots and hyphens")
    if prefix and not is_key(prefix):
        raise ConfigError(
            f"storage: the prefix after s3://{bucket}/ must be made of A-Z a-z 0-9 . _ - and single '/', no part "
            "starting with a dot"
        )
    endpoint = options[0][1] if options else None
    location = f"s3://{bucket}" + (f"/{prefix}" if prefix else "")
    if endpoint is not None:
        endpoint = _require_endpoint(endpoint, "endpoint_url")
        location += f"?endpoint_url={endpoint}"
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if endpoint is None and os.environ.get(variable):
            endpoint = _require_endpoint(os.environ[variable], variable)
    from orchestrator.storage.s3 import S3Store  # boto3 takes its time; folders do without

    return S3Store(bucket, prefix, endpoint, location=location)


def _require_endpoint(url: str, what: str) -> str:
    """Return scheme://host[:port], an S3 server's address."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
        parts = urlsplit("")
    if not sound or "@" in url or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ConfigError(f"storage: {what} must be http://HOST:PORT or https://HOST:PORT, and nothing else")
    return f"{parts.scheme}://{parts.netloc}"
