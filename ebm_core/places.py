"""How places are written, for all that read or store them: the name of a run, an address on an S3 server."""

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from ebm_core.errors import ConfigError

_RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
RUN_NAME_RULE = "must be 1 to 128 of the letters A-Z a-z 0-9 . _ - and not start with . or -"
"""A hidden folder is no run, and a command would take a leading dash for an option."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_CREDENTIALS_REMEDY = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and keep them out of the URI, which is stored "
    "and shown; allowed is s3://BUCKET/PREFIX?endpoint_url=http://HOST:PORT"
)


def is_run_name(name: object) -> bool:
    """Can a run, or a sweep, be called so? (`RUN_NAME_RULE`)"""
    return isinstance(name, str) and _RUN_NAME.fullmatch(name) is not None


class S3Place(NamedTuple):
    """A place in a bucket."""

    bucket: str
    prefix: str
    """Without slashes at its ends; empty for the whole bucket."""
    endpoint: str | None
    """http://HOST:PORT or https://HOST:PORT of the server; None: not said."""

    @property
    def uri(self) -> str:
        """The address, as `parse_s3` reads it."""
        place = f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
        return place if self.endpoint is None else f"{place}?endpoint_url={self.endpoint}"


def parse_s3(uri: str) -> S3Place:
    """What `s3://BUCKET[/PREFIX][?endpoint_url=http://HOST:PORT]` says. Nothing is contacted.

    Raises ConfigError in one line, which repeats nothing of a URI that may hold a secret.
    """
    head, _, query = uri.partition("?")
    if not head.startswith("s3://"):
        raise ConfigError("no s3:// URI; write s3://BUCKET/PREFIX")
    if "@" in uri or ":" in head.removeprefix("s3://") or "#" in uri:
        raise ConfigError(f"this s3:// URI has a user, password or port in it; {_CREDENTIALS_REMEDY}")
    options = parse_qsl(query, keep_blank_values=True)
    if [name for name, _ in options] not in ([], ["endpoint_url"]):
        raise ConfigError(f"this s3:// URI has an option other than endpoint_url; {_CREDENTIALS_REMEDY}")
    bucket, _, prefix = head.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError("this s3:// URI names no bucket of 3 to 63 letters, digits, dots and hyphens")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"the prefix after s3://{bucket}/ must be made of A-Z a-z 0-9 . _ - and single '/', no part starting with "
            "a dot"
        )
    return S3Place(bucket, prefix, require_endpoint(options[0][1], "endpoint_url") if options else None)


def require_endpoint(url: str, what: str) -> str:
    """Return scheme://host[:port], an S3 server's address; ConfigError names `what` said another."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
        parts = urlsplit("")
    if not sound or "@" in url or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ConfigError(f"{what} must be http://HOST:PORT or https://HOST:PORT, and nothing else")
    return f"{parts.scheme}://{parts.netloc}"
