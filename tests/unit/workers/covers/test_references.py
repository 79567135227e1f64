"""A reference image comes only from allowed places, within limits of size, pixels and time; each refusal says why."""

import http.server
import io
import ipaddress
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image
from pydantic import SecretStr

from workers.covers.references import Address, Fetcher, is_public
from workers.events import BadEvent
from workers.exceptions import StorageFault
from workers.pictures import check, decode
from workers.settings import S3, References
from workers.storage import ObjectStore

LIMITS = References(max_bytes=100_000, max_pixels=1_000_000, timeout_seconds=1.5)
NOWHERE = ObjectStore(
    S3(endpoint="http://127.0.0.1:9", access_key=SecretStr("none"), secret_key=SecretStr("none")),
    timeout=0.5,
    attempts=1,
)


def image_bytes(kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 0 if mode == "P" else "red").save(buffer, kind)
    return buffer.getvalue()


def png_bomb(side: int) -> bytes:
    """A few bytes that claim side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_of_three_formats_are_taken(kind: str) -> None:
    data = image_bytes(kind)
    assert check(data, LIMITS) == (40, 30)
    assert decode(data).size == (40, 30)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG"),
        (image_bytes("GIF", mode="P"), "not a PNG"),
        (image_bytes("TIFF"), "not a PNG"),
        (image_bytes("BMP"), "not a PNG"),
        (image_bytes("PNG", (1001, 1000)), "1001 x 1000 pixels"),
        (png_bomb(50_000), "more than 1,000,000"),
        (png_bomb(9_000), "more than 1,000,000"),
    ],
)
def test_what_is_no_small_picture_is_refused_from_its_header(data: bytes, reason: str) -> None:
    with pytest.raises(BadEvent, match=reason):
        check(data, LIMITS)


def test_a_truncated_picture_is_refused() -> None:
    data = image_bytes("JPEG", (400, 300))[:-300]
    check(data, LIMITS)
    with pytest.raises(BadEvent, match="broken"):
        decode(data)


def test_transparency_lies_on_white_and_large_pictures_are_made_smaller() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (2000, 100), (0, 0, 0, 0)).save(buffer, "PNG")
    picture = decode(buffer.getvalue())
    assert picture.size == (1024, 51)
    assert picture.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",
        "64:ff9b::a00:1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    ],
)
def test_addresses_that_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34"])
def test_addresses_that_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "address",
    [
        "https://127.0.0.1/x.png",
        "https://[::1]/x.png",
        "https://169.254.169.254/latest/meta-data/",
        "https://localhost/x.png",
        "https://2130706433/x.png",
        "https://0x7f.1/x.png",
    ],
)
def test_private_addresses_are_refused_however_they_are_spelled(address: str) -> None:
    with pytest.raises(BadEvent, match=r"not public|cannot be resolved|no host"):
        Fetcher(LIMITS, NOWHERE).fetch(address)


@pytest.mark.parametrize(
    "address",
    [
        "https://①②.com/",
        "https://127。0。0。1/",
        "https://example.org/é.png",
        "https:///x",
        "https://example.org:99999/x",
        "https://exa\x00mple.org/x",
        "https://[v1.x]/x",
    ],
)
def test_an_address_that_cannot_be_asked_is_a_bad_event(address: str) -> None:
    # Of the first kind one was retried for ever: httpcore's TypeError was no fault of the event's.
    with pytest.raises(BadEvent, match="reference image: "):
        Fetcher(LIMITS, NOWHERE).fetch(address)


class Web:
    """A TLS server on this machine; `answer` decides what it says."""

    def __init__(self, folder: Path) -> None:
        self.answer: Callable[[http.server.BaseHTTPRequestHandler], None] = lambda handler: handler.send_error(404)
        self.requests: list[str] = []
        self.context = _certificate(folder)
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.requests.append(self.path)
                web.answer(self)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.server.socket = serving.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fetcher(self, limits: References = LIMITS, allowed: Callable[[Address], bool] = lambda _: True) -> Fetcher:
        return Fetcher(limits, NOWHERE, resolve=lambda *_: ["127.0.0.1"], allowed=allowed, ssl_context=self.context)

    def address(self, path: str = "/x.png", host: str = "pictures.example") -> str:
        return f"https://{host}:{self.server.server_port}{path}"

    def gives(self, data: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in (headers or {"Content-Length": str(len(data))}).items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data)

        self.answer = answer


def _certificate(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pictures.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pictures.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(pem)
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ssl.create_default_context(cadata=pem.decode())


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    web = Web(tmp_path)
    yield web
    web.server.shutdown()
    web.server.server_close()


def test_a_picture_comes_over_https(web: Web) -> None:
    data = image_bytes()
    web.gives(data)
    assert web.fetcher().fetch(web.address()).data == data


def test_the_certificate_must_be_of_the_name_and_not_of_the_address(web: Web) -> None:
    web.gives(image_bytes())
    with pytest.raises(BadEvent, match="not valid for it"):
        web.fetcher().fetch(web.address(host="elsewhere.example"))
    assert web.requests == []


def test_a_missing_picture_is_refused_at_once(web: Web) -> None:
    with pytest.raises(BadEvent, match="not found"):
        web.fetcher().fetch(web.address())
    assert len(web.requests) == 1


def test_a_server_in_trouble_is_asked_again_and_then_given_up(web: Web) -> None:
    web.gives(b"", status=503)
    patient = LIMITS.model_copy(update={"timeout_seconds": 9.0})
    with pytest.raises(BadEvent, match=r"gave no picture within 9 s: status 503"):
        web.fetcher(patient).fetch(web.address())
    assert len(web.requests) == 3


def test_one_bad_moment_of_a_server_is_forgiven(web: Web) -> None:
    data = image_bytes()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        web.gives(data) if len(web.requests) == 1 else None
        handler.send_error(502)

    web.answer = answer
    assert web.fetcher().fetch(web.address()).data == data


def test_more_bytes_than_allowed_are_not_read_whatever_the_length_says(web: Web) -> None:
    sent = 0

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()  # no Content-Length: until the connection closes
        try:
            for _ in range(5000):
                handler.wfile.write(b"x" * 100_000)
                sent += 100_000
        except OSError:
            pass

    web.answer = answer
    with pytest.raises(BadEvent, match="more than 100,000 bytes"):
        web.fetcher().fetch(web.address())
    assert sent < 100_000_000


def test_a_server_that_drips_is_given_up_at_the_deadline(web: Web) -> None:
    given_up = threading.Event()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not given_up.wait(0.1):
            handler.wfile.write(b"x")

    web.answer = answer
    try:
        with pytest.raises(BadEvent, match=r"within 1\.5 s"):
            web.fetcher().fetch(web.address())
    finally:
        given_up.set()


def test_a_redirect_to_a_private_address_is_refused(web: Web) -> None:
    web.gives(b"", {"Location": web.address(host="127.0.0.2"), "Content-Length": "0"}, status=302)
    resolved: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        return ["127.0.0.1" if host == "pictures.example" else host]

    fetcher = Fetcher(
        LIMITS,
        NOWHERE,
        resolve=resolve,
        allowed=lambda address: str(address) == "127.0.0.1",
        ssl_context=web.context,
    )
    with pytest.raises(BadEvent, match="not public"):
        fetcher.fetch(web.address())
    assert resolved == ["pictures.example", "127.0.0.2"]
    assert len(web.requests) == 1


def test_a_redirect_away_from_https_is_refused(web: Web) -> None:
    web.gives(b"", {"Location": "http://pictures.example/x.png", "Content-Length": "0"}, status=301)
    with pytest.raises(BadEvent, match="only https"):
        web.fetcher().fetch(web.address())


def test_a_host_that_does_not_exist_is_refused_at_the_first_answer(web: Web) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    fetcher = Fetcher(LIMITS, NOWHERE, resolve=resolve)
    with pytest.raises(BadEvent, match="there is no host pictures"):
        fetcher.fetch("https://pictures.example/x.png")
    with pytest.raises(BadEvent, match="is no host of the public internet"):
        fetcher.fetch("https://files.internal/x.png")
    assert asked == ["pictures.example"]


def test_a_resolver_that_is_busy_is_asked_again() -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.raises(BadEvent, match="cannot be resolved"):
        Fetcher(LIMITS, NOWHERE, resolve=resolve).fetch("https://pictures.example/x.png")
    assert len(asked) > 1


def test_endless_redirects_end(web: Web) -> None:
    web.gives(b"", {"Location": "/again", "Content-Length": "0"}, status=302)
    with pytest.raises(BadEvent, match="redirects"):
        web.fetcher().fetch(web.address())
    assert len(web.requests) == 4


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(web: Web) -> None:
    # DNS rebinding: a public address for the check, a private one a moment later for the connection.
    web.gives(image_bytes())
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    fetcher = Fetcher(
        LIMITS,
        NOWHERE,
        resolve=lambda *_: next(answers),
        allowed=lambda a: str(a) == "127.0.0.1",
        ssl_context=web.context,
    )
    fetcher.fetch(web.address())
    assert next(answers) == ["10.0.0.1"]


def test_one_private_address_among_a_names_addresses_is_enough_to_refuse_it(web: Web) -> None:
    fetcher = Fetcher(
        LIMITS, NOWHERE, resolve=lambda *_: ["127.0.0.1", "10.0.0.1"], allowed=lambda a: str(a) == "127.0.0.1"
    )
    with pytest.raises(BadEvent, match="not public"):
        fetcher.fetch(web.address())


def test_only_named_hosts_where_hosts_are_named(web: Web) -> None:
    web.gives(image_bytes())
    limits = LIMITS.model_copy(update={"allowed_hosts": ("pictures.example",)})
    web.fetcher(limits).fetch(web.address())
    with pytest.raises(BadEvent, match=r"other\.example is not allowed"):
        web.fetcher(limits).fetch(web.address(host="other.example"))


def test_an_address_with_a_user_name_is_refused() -> None:
    with pytest.raises(BadEvent, match="user name"):
        Fetcher(LIMITS, NOWHERE).fetch("https://me:secret@pictures.example/x.png")


def test_a_picture_comes_from_our_bucket(store: ObjectStore) -> None:
    data = image_bytes("WEBP")
    store.put_new("art/x y#1.webp", data, "image/webp")
    assert Fetcher(LIMITS, store).fetch(store.address("art/x y#1.webp")).data == data


def test_what_is_wrong_with_an_object_is_the_events_fault(store: ObjectStore) -> None:
    store.put_new("large", b"x" * 100_001, "image/png")
    fetcher = Fetcher(LIMITS.model_copy(update={"allowed_buckets": ("no-such-bucket",)}), store)
    for address, reason in (
        (store.address("missing.png"), "not found"),
        (store.address("large"), "100,001 bytes, more than 100,000"),
        (store.address(""), "names no object"),
        ("s3://somebody-elses/x.png", "the bucket 'somebody-elses' is not allowed"),
        ("s3://no-such-bucket/x.png", "not found"),
    ):
        with pytest.raises(BadEvent, match=reason):
            fetcher.fetch(address)


def test_our_store_not_answering_is_our_fault() -> None:
    with pytest.raises(StorageFault):
        Fetcher(LIMITS, NOWHERE).fetch("s3://icg/x.png")
