"""The same promises as `objects.FolderStore`, on an S3 server: AWS, Ceph RGW, MinIO and the like.

An upload counts only when the server has confirmed size and SHA-256 of what it holds, because a missing checkpoint is
found at the worst moment. Each request's body is signed by its SHA-256, so the server refuses what the way damaged.
"""

import hashlib
import logging
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore import exceptions as aws
from botocore.config import Config
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError

from orchestrator.storage.interface import (
    Leftover,
    ObjectInfo,
    ObjectMissing,
    StorageError,
    is_key,
    open_source,
    os_reason,
    require_key,
    require_prefix,
)

MULTIPART_BYTES = 64 * 2**20
"""Larger objects are uploaded in parts of this size."""
_DOWNLOAD_ATTEMPTS = 3
_CUT = (aws.ReadTimeoutError, aws.ConnectionClosedError, aws.IncompleteReadError, aws.ResponseStreamingError)
_UNREACHABLE = (aws.EndpointConnectionError, aws.ConnectTimeoutError, aws.ProxyConnectionError)
_NO_CREDENTIALS = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)
_ERRORS = (aws.BotoCoreError, aws.ClientError, Boto3Error, RetriesExceededError, ResponseParserError)
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}


class S3Store:
    """Objects in `bucket` under `prefix`. Credentials come from boto3's standard chain (environment, profile, role).

    endpoint: URL of the server; None: what boto3's configuration says, AWS by default.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        endpoint: str | None = None,
        *,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 30,
        max_attempts: int = 5,
        multipart_bytes: int = MULTIPART_BYTES,
        page_keys: int = 1000,
        location: str | None = None,
    ) -> None:
        _quiet_libraries()
        self.bucket, self.prefix, self.endpoint = bucket, prefix, endpoint
        self._location = location or "s3://" + "/".join(filter(None, (bucket, prefix)))
        self._max_attempts, self._page_keys = max_attempts, page_keys
        self._transfer = TransferConfig(
            multipart_threshold=multipart_bytes,
            multipart_chunksize=multipart_bytes,
            max_concurrency=4,
            num_download_attempts=_DOWNLOAD_ATTEMPTS,
        )
        self._multipart_bytes = multipart_bytes
        config = Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": max_attempts},
            request_checksum_calculation="when_required",  # others than AWS answer 411 to the newer default
            response_checksum_validation="when_required",
            s3={"payload_signing_enabled": True, "addressing_style": "path" if endpoint else "auto"},
        )
        with self._explained("open", ""):
            self._client: Any = Session().client("s3", endpoint_url=endpoint, config=config)

    def describe(self, key: str = "") -> str:
        """s3://bucket/prefix/key, with the endpoint where the URI named one."""
        base, question, query = self._location.partition("?")
        return f"{base}/{key}{question}{query}" if key else self._location

    def put(self, key: str, data: bytes | Path) -> None:
        """Upload, then ask the server for size and digest of what it has."""
        place = self._place(key)
        with self._explained("write", key), open_source(data) as (source, size):
            metadata = {"sha256": _digest(source)}
            if size > self._multipart_bytes:
                self._client.upload_fileobj(source, **place, ExtraArgs={"Metadata": metadata}, Config=self._transfer)
            else:
                self._client.put_object(**place, Body=source, Metadata=metadata)
            self._confirm(key, size, metadata)

    def create(self, key: str, data: bytes | Path) -> bool:
        """A conditional upload (If-None-Match: *). A reply that was lost on the way does not hide a victory."""
        place = self._place(key)
        with self._explained("create", key), open_source(data) as (source, size):
            metadata = {"sha256": _digest(source), "writer": secrets.token_hex(16)}
            for attempt in range(self._max_attempts):
                source.seek(0)
                try:
                    self._client.put_object(**place, Body=source, Metadata=metadata, IfNoneMatch="*")
                except aws.ClientError as error:
                    if _status(error) == 412:
                        return self._metadata(key).get("writer") == metadata["writer"]
                    if _status(error) != 409:  # a racer is being decided: ask again
                        raise
                    time.sleep(random.uniform(0, 0.1 * 2**attempt))
                    continue
                try:
                    self._confirm(key, size, metadata)
                except StorageError:  # what exists decides races: no torn object of ours may stay
                    if self._metadata(key).get("writer") == metadata["writer"]:
                        self._client.delete_object(**place)
                    raise
                return True
        raise StorageError(
            f"cannot create {self.describe(key)}: a race stayed undecided {self._max_attempts} times; try again"
        )

    def get(self, key: str) -> bytes:
        """The object's bytes. A body that breaks off is asked for again, which boto3's own retries do not cover."""
        place = self._place(key)
        with self._explained("read", key):
            for _ in range(_DOWNLOAD_ATTEMPTS - 1):
                with suppress(*_CUT), closing(self._client.get_object(**place)["Body"]) as body:
                    return body.read()
            with closing(self._client.get_object(**place)["Body"]) as body:
                return body.read()

    def get_file(self, key: str, path: Path) -> None:
        """Download to `path`, large objects by several connections."""
        place = self._place(key)
        with self._explained("read", key):
            try:
                with path.open("wb") as target:
                    self._client.download_fileobj(**place, Fileobj=target, Config=self._transfer)
            except _ERRORS:  # some of them are OSErrors too
                raise
            except OSError as error:
                raise StorageError(f"cannot write the local file {path}: {os_reason(error)}") from None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects with well-formed keys, `page_keys` per request."""
        skipped = len(self._full(""))
        for page in self._pages(prefix):
            for entry in page.get("Contents", ()):
                key = entry["Key"][skipped:]
                if is_key(key):
                    yield ObjectInfo(key, entry["Size"], entry["LastModified"])

    def folders(self, prefix: str = "") -> Iterator[str]:
        """Common prefixes under `prefix`, which is empty or ends in a slash."""
        skipped = len(self._full(prefix))
        pages = self._pages(prefix, Delimiter="/")
        names = {entry["Prefix"][skipped:-1] for page in pages for entry in page.get("CommonPrefixes", ())}
        yield from sorted(filter(is_key, names))  # the server sorts them with their slash

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        place = self._place(key)
        with self._explained("delete", key):
            self._client.delete_object(**place)

    def exists(self, key: str) -> bool:
        """Asked by a listing: to a HEAD request a missing bucket looks like a missing object."""
        full = self._place(key)["Key"]
        with self._explained("look up", key):
            page = self._client.list_objects_v2(Bucket=self.bucket, Prefix=full, MaxKeys=1)
            return any(entry["Key"] == full for entry in page.get("Contents", ()))

    def size(self, key: str) -> int:
        """Size in bytes."""
        place = self._place(key)
        with self._explained("look up", key):
            return self._client.head_object(**place)["ContentLength"]

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        """Uploads in parts that were never completed; their parts cost space and show nowhere else."""
        require_prefix(prefix)
        skipped = len(self._full(""))
        with self._explained("list", prefix.rstrip("/")):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self._full(prefix)
            )
            for page in pages:
                for upload in page.get("Uploads", ()):
                    key = upload["Key"][skipped:]
                    if is_key(key):
                        yield Leftover(f"{key} (parts)", 0, upload["Initiated"], f"{key} {upload['UploadId']}")

    def discard(self, leftover: Leftover) -> None:
        """Abort an upload in parts."""
        key, _, upload = leftover.id.partition(" ")
        place = self._place(key)
        with self._explained("delete", key), suppress(self._client.exceptions.NoSuchUpload):
            self._client.abort_multipart_upload(**place, UploadId=upload)

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._full(require_key(key))}

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        require_prefix(prefix)
        with self._explained("list", prefix.rstrip("/")):
            paginator = self._client.get_paginator("list_objects_v2")
            size = {"PageSize": self._page_keys}
            yield from paginator.paginate(
                Bucket=self.bucket, Prefix=self._full(prefix), PaginationConfig=size, **options
            )

    def _metadata(self, key: str) -> dict[str, str]:
        """What `put` and `create` wrote beside the object; empty if the object has gone."""
        try:
            return self._client.head_object(**self._place(key))["Metadata"]
        except aws.ClientError as error:
            if _status(error) == 404:
                return {}
            raise

    def _confirm(self, key: str, size: int, metadata: dict[str, str]) -> None:
        """A server may answer 200 and keep something else, or nothing: ask."""
        try:
            head = self._client.head_object(**self._place(key))
        except aws.ClientError as error:
            if _status(error) != 404:
                raise
            raise StorageError(
                f"cannot write {self.describe(key)}: the server accepted it but does not have it; check the server"
            ) from None
        if head["ContentLength"] != size or head["Metadata"].get("sha256") != metadata["sha256"]:
            raise StorageError(
                f"cannot write {self.describe(key)}: {size} bytes were sent, the server has {head['ContentLength']}, "
                "or another writer's; check the server and that no other job writes there"
            )

    @contextmanager
    def _explained(self, operation: str, key: str) -> Iterator[None]:
        """Turn what boto3 raises into one line."""
        try:
            yield
        except _ERRORS as error:
            missing, reason = _reason(error)
            kind = ObjectMissing if missing else StorageError
            raise kind(f"cannot {operation} {self.describe(key)}: {reason}") from None
        except ValueError as error:  # boto3's word for an endpoint that is no URL
            raise StorageError(f"cannot {operation} {self.describe(key)}: {error}; correct the URI") from None


def _digest(source: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(2**20):
        digest.update(chunk)
    source.seek(0)
    return digest.hexdigest()


def _status(error: aws.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _reason(error: Exception) -> tuple[bool, str]:
    """(is only the object missing, why and what to do), without any part of the request."""
    if isinstance(error, aws.ClientError):
        return _answer(str(error.response.get("Error", {}).get("Code", "")), _status(error))
    if isinstance(error, _NO_CREDENTIALS):
        return False, "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, _UNREACHABLE):
        return False, "the server cannot be reached; check the endpoint and that the server runs"
    if isinstance(error, aws.SSLError):
        return False, "the server's certificate was not accepted; check the endpoint, or set AWS_CA_BUNDLE"
    if isinstance(error, aws.ReadTimeoutError):
        return False, "the server did not answer in time; check the server and the network"
    if isinstance(error, aws.HTTPClientError | RetriesExceededError | aws.IncompleteReadError):
        return False, "the connection broke off each time; check the server and the network"
    if isinstance(error, ResponseParserError):
        return False, "the answer is not S3's; check that the endpoint is an S3 server"
    return False, f"{type(error).__name__}; check the AWS settings of this machine"


def _answer(code: str, status: int) -> tuple[bool, str]:
    """What an error answer of the server means."""
    if code == "NoSuchBucket":
        return False, "there is no such bucket; create it, or correct the URI"
    if status == 404:
        return True, "there is no such object; check the name"
    if "Quota" in code or status == 507:
        return False, f"the server has no space left ({code}); free some or raise the quota"
    if code in ("RequestTimeTooSkewed", "RequestInTheFuture"):
        return False, f"its clock and this machine's differ too much ({code}); set both by NTP"
    if status == 403 or code in _DENIED:
        return False, f"access denied ({code}); check the credentials and the bucket's policy"
    if status in (301, 307, 400) and code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return False, f"the bucket is in another region ({code}); set AWS_REGION"
    if status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return False, f"the server keeps failing (HTTP {status} {code}); try again later, or check the endpoint"
    return False, f"the server refused it (HTTP {status} {code}); check that the endpoint supports S3 uploads"


def _quiet_libraries() -> None:
    """Requests are this module's to report; the libraries speak up from warnings on."""
    for name in ("boto3", "botocore", "s3transfer", "urllib3"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
