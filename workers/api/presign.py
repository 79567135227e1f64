"""Presigned S3 addresses at 10 µs each; botocore needs 330 µs, 67 ms for a page of 200 covers.

AWS Signature V4 in the query, GET only. The signing time is rounded down to half the life of an address, so that every
replica of the api gives the same address for half its life: browsers and CDNs keep the picture, and nothing is shared.
Halves begin at a moment of their own for each key, or all pictures would be fetched anew at once.
"""

from __future__ import annotations

import hashlib
import hmac
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import boto3

from workers.settings import S3

_MOST_KEPT = 25_000
"""Addresses of half a life, about 10 MB."""
_MOST_MOMENTS = 2000
"""Halves of 450 s begin at 450 different seconds."""


@dataclass(frozen=True, slots=True)
class Address:
    url: str
    valid_until: str
    """RFC 3339, UTC."""


@dataclass(frozen=True, slots=True)
class _Keys:
    access: str
    secret: str
    token: str | None
    read: float


@dataclass(frozen=True, slots=True)
class _Moment:
    """A signing time: query and text but for what depends on the key, the derived signing key, and the end."""

    query: str
    text: str
    key: bytes
    valid_until: str


class Presigner:
    """Makes addresses that anybody may GET until `valid_until`, at least half of `presign_seconds` from now."""

    def __init__(self, settings: S3, clock: Callable[[], float] = time.time) -> None:
        endpoint = settings.public_endpoint or settings.endpoint or f"https://s3.{settings.region}.amazonaws.com"
        parts = urlsplit(endpoint)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self._host, self._prefix = parts.netloc, parts.path.rstrip("/")
        self._settings, self._clock = settings, clock
        self._half = max(1, settings.presign_seconds // 2)
        self._kept: dict[tuple[str, str], tuple[int, Address]] = {}
        self._older: dict[tuple[str, str], tuple[int, Address]] = {}
        self._since = clock()
        self._moments: dict[tuple[int, str], _Moment] = {}
        self._keys: _Keys | None = None

    def address(self, key: str, bucket: str | None = None) -> Address:
        """The address of an object; the same text for half its life. No request is made."""
        bucket = bucket or self._settings.bucket
        phase = zlib.crc32(key.encode()) % self._half
        signed_at = (int(self._clock()) + phase) // self._half * self._half - phase
        kept = self._kept.get((bucket, key)) or self._older.get((bucket, key))
        if kept is None or kept[0] != signed_at:
            kept = (signed_at, self.sign(key, bucket, signed_at))
        if len(self._kept) >= _MOST_KEPT or abs(self._clock() - self._since) >= self._half:
            # What nobody has asked for since would be signed anew by the time that somebody does.
            self._kept, self._older, self._since = {}, self._kept, self._clock()
        self._kept[bucket, key] = kept
        return kept[1]

    def sign(self, key: str, bucket: str, at: int) -> Address:
        """The address as signed at a unix time."""
        moment = self._moment(at)
        path = f"{self._prefix}/{bucket}/{quote(key, safe='/~')}"
        request = f"GET\n{path}\n{moment.query}\nhost:{self._host}\n\nhost\nUNSIGNED-PAYLOAD"
        text = moment.text + hashlib.sha256(request.encode()).hexdigest()
        signature = hmac.digest(moment.key, text.encode(), "sha256").hex()
        return Address(f"{self.origin}{path}?{moment.query}&X-Amz-Signature={signature}", moment.valid_until)

    def _moment(self, at: int) -> _Moment:
        """What all keys signed at one second share."""
        keys = self._credentials()
        found = self._moments.get((at, keys.access))
        if found is None:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
            region, life = self._settings.region, self._settings.presign_seconds
            scope = f"{stamp[:8]}/{region}/s3/aws4_request"
            query = (
                f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={quote(f'{keys.access}/{scope}', safe='')}"
                f"&X-Amz-Date={stamp}&X-Amz-Expires={life}"
            )
            if keys.token is not None:
                query += f"&X-Amz-Security-Token={quote(keys.token, safe='')}"
            signing = f"AWS4{keys.secret}".encode()
            for part in (stamp[:8], region, "s3", "aws4_request"):
                signing = hmac.digest(signing, part.encode(), "sha256")
            until = datetime.fromtimestamp(at + life, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            found = _Moment(
                f"{query}&X-Amz-SignedHeaders=host", f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n", signing, until
            )
            if len(self._moments) >= _MOST_MOMENTS:
                self._moments.clear()
            self._moments[at, keys.access] = found
        return found

    def _credentials(self) -> _Keys:
        """The settings' keys, else what boto3 finds (a role's keys change: they are read again every minute)."""
        now = self._clock()
        if self._keys is not None and (self._settings.access_key is not None or now - self._keys.read < 60):
            return self._keys
        if self._settings.access_key is not None and self._settings.secret_key is not None:
            access, secret, token = (
                self._settings.access_key.get_secret_value(),
                self._settings.secret_key.get_secret_value(),
                None,
            )
        else:
            found = boto3.session.Session().get_credentials()
            if found is None:
                raise RuntimeError("no S3 credentials: set ICG_S3_ACCESS_KEY and ICG_S3_SECRET_KEY, or give a role")
            frozen = found.get_frozen_credentials()
            access, secret, token = str(frozen.access_key), str(frozen.secret_key), frozen.token
        self._keys = _Keys(access, secret, token, now)
        return self._keys
