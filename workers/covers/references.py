"""Fetch an item's reference image, from allowed places and within limits of size, pixels and time.

Whatever is wrong with the address or the picture is a `BadEvent`: the event is at fault and its reason is for a person.
Our own S3 not answering is a `StorageFault`, which the caller retries. Somebody else's web server not answering is the
event's fault once the time limit has passed: we cannot wait for the internet without limit.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore
from botocore.exceptions import ClientError

from workers.events import BadEvent
from workers.exceptions import StorageFault
from workers.pictures import check
from workers.records import sha256
from workers.settings import References
from workers.storage import ObjectStore

_REDIRECTS = 3
_NO_SUCH_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""The resolver knows that there is none. EAI_AGAIN, the other answer, is worth another try."""
_NOWHERE = (".invalid", ".localhost", ".local", ".internal")
"""Names that no public server has (RFC 6761, RFC 6762, ICANN 2024): a resolver may take seconds to say so."""
_RESOLVERS = ThreadPoolExecutor(8, "resolve")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]


@dataclass(frozen=True, slots=True)
class Reference:
    """The bytes of a reference image, header checked, pixels not decoded yet."""

    data: bytes
    sha256: str


class Fetcher:
    """Fetches reference images. Thread-safe; every call blocks for at most about `timeout_seconds`."""

    def __init__(
        self,
        settings: References,
        store: ObjectStore,
        *,
        resolve: Resolve | None = None,
        allowed: Callable[[Address], bool] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            resolve, allowed, ssl_context: for tests, which have no public server to ask: from host and port to
                addresses, which addresses may be connected to (default: `is_public`), which certificates are trusted.
        """
        self._settings = settings
        self._store = store
        self._resolve = resolve or _resolve
        self._allowed = allowed or is_public
        self._ssl_context = ssl_context or ssl.create_default_context()

    def fetch(self, address: str) -> Reference:
        """The checked bytes at an s3:// or https:// address.

        Raises:
            BadEvent: missing, not allowed, too large, not a picture, or no answer in time.
            StorageFault: our S3 does not answer.
        """
        data = self._from_s3(address) if address.startswith("s3://") else self._from_web(address)
        check(data, self._settings)
        return Reference(data, sha256(data))

    def _from_s3(self, address: str) -> bytes:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        if bucket != self._store.bucket and bucket not in self._settings.allowed_buckets:
            raise BadEvent(f"reference image: the bucket {bucket!r} is not allowed")
        if not key:
            raise BadEvent("reference image: the address names no object")
        try:
            head = self._store.head(key, bucket)
            if head is None:
                raise BadEvent("reference image: not found")
            if head.size > self._settings.max_bytes:
                raise BadEvent(_too_large(head.size, self._settings.max_bytes))
            stored = self._store.get(key, bucket)
        except StorageFault as fault:
            if bucket != self._store.bucket and _refused(fault):
                raise BadEvent(f"reference image: the bucket {bucket!r} does not let us read it") from None
            raise
        if stored is None:
            raise BadEvent("reference image: not found")
        if len(stored.data) > self._settings.max_bytes:
            raise BadEvent(_too_large(len(stored.data), self._settings.max_bytes))
        return stored.data

    def _from_web(self, address: str) -> bytes:
        deadline = time.monotonic() + self._settings.timeout_seconds
        trouble = "no answer"
        for pause in (0.2, 0.6, None):
            try:
                return self._follow(address, deadline)
            except _Unavailable as error:
                trouble = str(error)
            if pause is None or time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        host = urlsplit(address).hostname
        raise BadEvent(
            f"reference image: {host} gave no picture within {self._settings.timeout_seconds:g} s: {trouble}"
        )

    def _follow(self, address: str, deadline: float) -> bytes:
        for _ in range(_REDIRECTS + 1):
            host, port = self._checked_host(address)
            backend = _Backend(self._resolve, self._allowed, deadline)
            try:
                with (
                    httpcore.ConnectionPool(ssl_context=self._ssl_context, network_backend=backend) as pool,
                    pool.stream("GET", address, headers=_headers(host, port)) as response,
                ):
                    if response.status in {301, 302, 303, 307, 308}:
                        address = urljoin(address, _header(response, b"location"))
                        continue
                    if response.status in {408, 425, 429} or response.status >= 500:
                        raise _Unavailable(f"status {response.status}")
                    if response.status in {404, 410}:
                        raise BadEvent("reference image: not found")
                    if response.status != 200:
                        raise BadEvent(f"reference image: {host} answers with status {response.status}")
                    return self._body(response.iter_stream())
            except BadEvent:
                raise
            # httpcore raises TypeError and ValueError for addresses that it cannot put on the wire.
            except (httpcore.UnsupportedProtocol, TypeError, ValueError):
                raise BadEvent("reference image: the address is not a valid https address") from None
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
                if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
                    raise BadEvent(f"reference image: the certificate of {host} is not valid for it") from None
                raise _Unavailable(str(error) or type(error).__name__) from None
        raise BadEvent(f"reference image: more than {_REDIRECTS} redirects")

    def _checked_host(self, address: str) -> tuple[str, int]:
        if not address.isascii():
            raise BadEvent("reference image: the address is not ASCII; write it in punycode and percent-encoded")
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port or 443
        except ValueError:
            raise BadEvent("reference image: the address is not a valid https address") from None
        if parts.scheme != "https":
            raise BadEvent(f"reference image: only https may be asked, not {parts.scheme or 'nothing'}")
        if not host:
            raise BadEvent("reference image: the address names no host")
        if parts.username is not None:
            raise BadEvent("reference image: an address may carry no user name")
        if self._settings.allowed_hosts and host not in self._settings.allowed_hosts:
            raise BadEvent(f"reference image: the host {host} is not allowed")
        if not self._settings.allowed_hosts and f".{host}".rstrip(".").endswith(_NOWHERE):
            raise BadEvent(f"reference image: {host} is no host of the public internet")
        return host, port

    def _body(self, chunks: Iterable[bytes]) -> bytes:
        # Content-Length may lie: what counts is what comes.
        body = bytearray()
        for chunk in chunks:
            body += chunk
            if len(body) > self._settings.max_bytes:
                raise BadEvent(_too_large(None, self._settings.max_bytes))
        return bytes(body)


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could mean this address: not private, loopback, link-local, metadata, multicast.

    Addresses that carry another one inside (IPv4-mapped, 6to4, Teredo, NAT64) are judged by that one too.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner: list[ipaddress.IPv4Address | None] = [address.ipv4_mapped, address.sixtofour]
        if address.teredo is not None:
            inner.extend(address.teredo)
        if address in ipaddress.IPv6Network("64:ff9b::/96"):
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(not is_public(carried) for carried in inner if carried is not None):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast and not address.is_reserved


class _Unavailable(Exception):
    """The web server did not answer properly; another try may help while there is time."""


class _Backend(httpcore.SyncBackend):
    """Resolves a host, checks every address, and connects to the address that it checked.

    So a name that answers differently the second time (DNS rebinding) gains nothing; TLS still verifies the name.
    """

    def __init__(self, resolve: Resolve, allowed: Callable[[Address], bool], deadline: float) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            # The system's resolver knows no time limit.
            found = _RESOLVERS.submit(self._resolve, host, port).result(_left(self._deadline))
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_HOST:
                raise BadEvent(f"reference image: there is no host {host}") from None
            raise _Unavailable(f"the host {host} cannot be resolved") from None
        except (OSError, UnicodeError, TimeoutError):
            raise _Unavailable(f"the host {host} cannot be resolved") from None
        addresses = [ipaddress.ip_address(text.split("%")[0]) for text in found]
        for address in addresses:
            if not self._allowed(address):
                raise BadEvent(f"reference image: the host {host} is at an address that is not public")
        trouble: Exception = _Unavailable(f"the host {host} has no address")
        for address in addresses:
            try:
                stream = super().connect_tcp(str(address), port, _left(self._deadline), local_address, socket_options)
                return _Timed(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                trouble = error
        raise trouble


class _Timed(httpcore.NetworkStream):
    """A stream whose every read and write ends by one deadline, however slowly the other side drips."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("too slow")
    return left


def _resolve(host: str, port: int) -> list[str]:
    return list(dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def _headers(host: str, port: int) -> list[tuple[str, str]]:
    literal = f"[{host}]" if ":" in host else host
    return [
        ("Host", literal if port == 443 else f"{literal}:{port}"),
        ("User-Agent", "icg-covers"),
        ("Accept", "image/png, image/jpeg, image/webp"),
        ("Accept-Encoding", "identity"),
    ]


def _header(response: httpcore.Response, name: bytes) -> str:
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("latin-1")
    raise BadEvent("reference image: a redirect that names no address")


def _refused(fault: StorageFault) -> bool:
    cause = fault.__cause__
    if not isinstance(cause, ClientError):
        return False
    status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return 400 <= status < 500 and status not in {408, 429}


def _too_large(size: int | None, most: int) -> str:
    is_ = "more" if size is None else f"{size:,} bytes, more"
    return f"reference image: {is_} than {most:,} bytes"
