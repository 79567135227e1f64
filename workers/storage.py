"""S3 through boto3: objects written once, records changed by compare-and-swap.

Left out on purpose: multipart uploads (a conditional one is another protocol; the largest object is a model file, well
under the 5 GB of one PUT) and streaming reads (covers and records are small; `releases` fetches files one at a time).
"""

from __future__ import annotations

import hashlib
import io
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from workers.exceptions import Conflict, Fault, Stopped, StorageFault
from workers.records import sha256
from workers.settings import S3

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

T = TypeVar("T")

_WRITE_ID = "icg-write"
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_FAILED_CONDITION = {"412", "PreconditionFailed"}
_BUSY = {"409", "ConditionalRequestConflict"}


@dataclass(frozen=True, slots=True)
class Stored:
    """An object's bytes and the ETag to change it by."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Head:
    """What an object is, without its bytes."""

    size: int
    etag: str
    content_type: str


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing."""

    key: str
    etag: str


_MAKING = threading.Lock()
"""Clients may be shared among threads; a session that makes them may not."""


@cache
def _session() -> boto3.session.Session:
    """One a process: each reads S3's service model anew, a tenth of a second."""
    return boto3.session.Session()


class ObjectStore:
    """One bucket. Thread-safe. Every method raises `StorageFault` for what a retry may cure."""

    def __init__(self, settings: S3, *, timeout: float = 10.0, attempts: int = 3) -> None:
        """
        Args:
            timeout: seconds for one read; connecting may take 3. A call gives up after `attempts` of them: 30 s.
            attempts: tries of one call at botocore's own pace, before it is a `StorageFault`.
        """
        self.bucket = settings.bucket
        self._settings = settings
        self._attempts = attempts
        self._client = self._connect(settings.endpoint, timeout, attempts)
        # A conditional write retried unseen may answer 412 because of its own first try: `put_if` retries by itself.
        self._once = self._connect(settings.endpoint, timeout, 1)
        public = settings.public_endpoint
        self._signer = self._connect(public, timeout, 1) if public else self._client
        self._lock = threading.Lock()
        self._unsure: dict[tuple[str, str | None, str], str] = {}

    def _connect(self, endpoint: str | None, timeout: float, attempts: int) -> S3Client:
        settings = self._settings
        # Stores other than Amazon's do not all know the checksums that botocore adds by default since 1.36.
        only_when_asked: dict[str, Any] = {
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        config = Config(
            signature_version="s3v4",
            connect_timeout=3,
            read_timeout=timeout,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=64,
            tcp_keepalive=True,
            **(only_when_asked if endpoint else {}),
        )
        with _MAKING:
            return _session().client(
                "s3",
                endpoint_url=endpoint,
                region_name=settings.region,
                aws_access_key_id=settings.access_key.get_secret_value() if settings.access_key else None,
                aws_secret_access_key=settings.secret_key.get_secret_value() if settings.secret_key else None,
                verify=str(settings.ca_bundle) if settings.ca_bundle else None,
                config=config,
            )

    def get(self, key: str, bucket: str | None = None) -> Stored | None:
        """The object, None if absent.

        Args:
            bucket: another bucket than ours.
        """
        try:
            answer = self._client.get_object(Bucket=bucket or self.bucket, Key=key)
            return Stored(answer["Body"].read(), answer["ETag"])
        except Exception as error:
            if _code(error) in _ABSENT:
                return None
            raise _fault(error, f"get {key}") from error

    def head(self, key: str, bucket: str | None = None) -> Head | None:
        """Size in bytes, ETag and content type, None if absent."""
        try:
            answer = self._client.head_object(Bucket=bucket or self.bucket, Key=key)
            return Head(answer["ContentLength"], answer["ETag"], answer.get("ContentType", ""))
        except Exception as error:
            if _code(error) in _ABSENT:
                return None
            raise _fault(error, f"head {key}") from error

    def exists(self, key: str) -> bool:
        return self.head(key) is not None

    def download(self, key: str, path: Path) -> str | None:
        """Write the object to a file, a mebibyte at a time.

        Returns:
            Its sha256, None if absent.
        """
        digest = hashlib.sha256()
        try:
            body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
            with path.open("wb") as file:
                for chunk in body.iter_chunks(2**20):
                    digest.update(chunk)
                    file.write(chunk)
            return digest.hexdigest()
        except Exception as error:
            if _code(error) in _ABSENT:
                return None
            raise _fault(error, f"get {key}") from error

    def put_new(self, key: str, data: bytes | Path, content_type: str) -> bool:
        """Write an immutable object.

        Args:
            data: bytes, or a file of at most 5 GB.

        Returns:
            False when it is there already. That may be our own retried request: the bytes are the same either way.
        """
        for wait in (0.05, 0.2, 0.8, None):
            try:
                with open(data, "rb") if isinstance(data, Path) else io.BytesIO(data) as body:
                    self._client.put_object(
                        Bucket=self.bucket, Key=key, Body=body, ContentType=content_type, IfNoneMatch="*"
                    )
                return True
            except Exception as error:
                code = _code(error)
                if code in _FAILED_CONDITION:
                    return False
                if code not in _BUSY or wait is None:
                    raise _fault(error, f"put {key}") from error
                time.sleep(wait * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    def put_if(self, key: str, data: bytes, etag: str | None, content_type: str = "application/json") -> str:
        """Write if the object still is what was read: compare-and-swap.

        A request that timed out may have been done. Then, here and in the next call with the same arguments, a refusal
        is checked against the stored object: if our own write is what it holds, that is a success.

        Args:
            etag: of the `Stored` that was read; None if there was none.

        Returns:
            The new ETag.

        Raises:
            Conflict: somebody else wrote it since: read and decide again.
            StorageFault: perhaps written, perhaps not; call again with the same arguments.
        """
        this = (key, etag, sha256(data))
        with self._lock:
            known = self._unsure.pop(this, None)
        write_id, unsure = known or uuid.uuid4().hex, known is not None
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        for attempt in range(1, self._attempts + 1):
            try:
                answer = self._once.put_object(
                    Bucket=self.bucket,
                    Key=key,
                    Body=data,
                    ContentType=content_type,
                    Metadata={_WRITE_ID: write_id},
                    **condition,
                )
                return answer["ETag"]
            except Exception as error:
                code = _code(error)
                if code in _FAILED_CONDITION or code in _ABSENT:  # If-Match on nothing is a 404 at Amazon
                    written = self._written_by(key, data, write_id) if unsure else None
                    if written is None:
                        raise Conflict(f"{key} has changed") from None
                    return written
                fault = _fault(error, f"put {key}")
                if not isinstance(fault, StorageFault):
                    raise
                unsure = unsure or code not in _BUSY
                if attempt == self._attempts:
                    if unsure:
                        self._remember(this, write_id)
                    raise fault from error
                time.sleep(0.1 * 2**attempt * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    def _written_by(self, key: str, data: bytes, write_id: str) -> str | None:
        """The ETag if the object holds exactly that write of ours, else None."""
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            same = answer["Metadata"].get(_WRITE_ID) == write_id and answer["Body"].read() == data
            return answer["ETag"] if same else None
        except Exception as error:
            if _code(error) in _ABSENT:
                return None
            raise _fault(error, f"get {key}") from error

    def _remember(self, write: tuple[str, str | None, str], write_id: str) -> None:
        with self._lock:
            self._unsure[write] = write_id
            while len(self._unsure) > 10_000:  # whoever never called again; the oldest go first
                del self._unsure[next(iter(self._unsure))]

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> bytes | None:
        """Change a small record by compare-and-swap until nobody was in between.

        Args:
            change: from the bytes (None if absent) to the new ones, None to leave them. Called again after a conflict.

        Returns:
            What the record holds now.
        """
        for attempt in range(200):
            stored = self.get(key)
            data = change(stored.data if stored else None)
            if data is None:
                return stored.data if stored else None
            try:
                self.put_if(key, data, stored.etag if stored else None)
                return data
            except Conflict:
                time.sleep(random.uniform(0, min(0.5, 0.005 * 2 ** min(attempt, 7))))
        raise StorageFault(f"{key} changed 200 times while we tried to")

    def delete(self, key: str) -> None:
        """Delete it; absent is fine."""
        try:
            self._client.delete_object(Bucket=self.bucket, Key=key)
        except Exception as error:
            raise _fault(error, f"delete {key}") from error

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that begin with `prefix`, in order."""
        return (each.key for each in self.listing(prefix))

    def listing(self, prefix: str, after: str = "", page: int = 1000) -> Iterator[Listed]:
        """Objects whose keys begin with `prefix` and come after the key `after`, in order, `page` to a request."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix, StartAfter=after, PaginationConfig={"PageSize": page}
        )
        try:
            for found in pages:
                for each in found.get("Contents", ()):
                    yield Listed(each["Key"], each["ETag"])
        except (BotoCoreError, ClientError) as error:
            raise _fault(error, f"list {prefix}") from error

    def presign(self, key: str, seconds: int | None = None) -> str:
        """An address that anybody may GET for `seconds` (default: the settings'). No request is made."""
        return self._signer.generate_presigned_url(
            "get_object",
            Params={"Bucket": self.bucket, "Key": key},
            ExpiresIn=seconds or self._settings.presign_seconds,
        )

    def address(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def ensure_bucket(self) -> None:
        """Create the bucket if it is not there."""
        try:
            self._client.head_bucket(Bucket=self.bucket)
            return
        except Exception as error:
            if _code(error) not in {"404", "NoSuchBucket", "NotFound"}:
                raise _fault(error, f"bucket {self.bucket}") from error
        region = self._settings.region
        where: dict[str, Any] = {} if region == "us-east-1" else {"LocationConstraint": region}
        try:
            options: dict[str, Any] = {"CreateBucketConfiguration": where} if where else {}
            self._client.create_bucket(Bucket=self.bucket, **options)
        except Exception as error:
            if _code(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                raise _fault(error, f"bucket {self.bucket}") from error

    def ping(self) -> bool:
        """Does the bucket answer? For readiness checks; takes as long as any call at worst."""
        try:
            self._once.head_bucket(Bucket=self.bucket)
            return True
        except (BotoCoreError, ClientError):
            return False


def _code(error: Exception) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _fault(error: Exception, what: str) -> Exception:
    """A StorageFault for what went wrong between us and the store; a mistake of ours in the call stays what it is."""
    if isinstance(error, ParamValidationError) or not isinstance(error, BotoCoreError | ClientError | OSError):
        return error
    # The endpoint's address is in botocore's text, the keys are not.
    return StorageFault(f"{what}: {error}")


def retrying(
    call: Callable[[], T],
    *,
    what: str,
    stop: threading.Event | None = None,
    on_retry: Callable[[Fault], None] | None = None,
    most_seconds: float = 10.0,
) -> T:
    """Call until it raises no `Fault`, waiting 0.1 s, 0.2 s, … `most_seconds` with jitter in between.

    Args:
        call: anything that may raise a `Fault`; every other exception comes through at once.
        what: for the log: "write manifest".
        stop: give up when it is set, before the next try.
        on_retry: told of each fault before the wait: make the worker not ready here.

    Raises:
        Stopped: `stop` was set; never before the first try.
    """
    waited, attempt = 0.0, 0
    while True:
        try:
            return call()
        except Fault as fault:
            attempt += 1
            if stop is not None and stop.is_set():
                raise Stopped(f"{what}: stopped while it failed: {fault}") from fault
            if attempt == 1 or waited >= 30:
                log.warning("%s fails, try %d: %s", what, attempt, fault)
                waited = 0.0
            if on_retry is not None:
                on_retry(fault)
            pause = min(most_seconds, 0.1 * 2 ** min(attempt - 1, 20)) * random.uniform(0.5, 1.0)
            waited += pause
            if stop is None:
                time.sleep(pause)
            elif stop.wait(pause):
                raise Stopped(f"{what}: stopped while it failed: {fault}") from fault
