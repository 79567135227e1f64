"""Events that no well-meaning platform sends, all from one seed: what a stranger, a bug or a broken disk would."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from workers.events import ItemPublish, ItemRefresh, UserBehavior
from workers.storage import ObjectStore

TOPICS = (ItemPublish.topic, ItemRefresh.topic, UserBehavior.topic)
IDS = ("", ".", "..", "../x", "a/b", "a\\b", "a b", "a" * 129, "é", "a\u0000b", "a\n", "\ud7ff", "%2e%2e", "a\u202eb")
TIMES = (0, 1.5, True, "", "yesterday", "2026-11-21", "2026-13-01T00:00:00Z", "2026-11-21T12:00:00", "\u0000", [])
EXTREME_TIMES = ("0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59Z", "2026-11-21T12:00:00+23:59")
NUMBERS = (0, -1, 2**63, 10**400, 1.5, "1", True, [], {})
NOT_OURS = (
    "https://127.0.0.1/x.png",
    "https://127.1/x.png",
    "https://2130706433/x.png",
    "https://0x7f.0.0.1/x.png",
    "https://0/x.png",
    "https://[::1]/x.png",
    "https://[::ffff:10.0.0.1]/x.png",
    "https://[64:ff9b::7f00:1]/x.png",
    "https://169.254.169.254/latest/meta-data/",
    "https://10.0.0.1:22/x.png",
    "https://localhost/x.png",
    "https://metadata.google.internal/x.png",
    "https://user:password@127.0.0.1/x.png",
    "https://[/x.png",
    "https://:443/x.png",
    "https://127.0.0.1:99999/x.png",
    "https://exa mple/x.png",
    "http://127.0.0.1/x.png",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "s3://",
    "s3://another-bucket/x.png",
)
HEADERS: tuple[dict[str, bytes], ...] = (
    {"dlq_attempt": b"abc"},
    {"dlq_attempt": b"9" * 5000},
    {"traceparent": b"00-zz-zz-01"},
    {"traceparent": b"\xff\xfe", "ce_id": b"\xff" * 300},
    {"ce_id": b"", "ce_time": b"never", "content-type": b"text/html"},
    {"x" * 5000: b"y" * 5000},
)
MORE: dict[str, Any] = {
    "title": "A Title",
    "category": "art",
    "reason": "asked",
    "priority": 3,
    "decision": "a.b.c",
    "surface": "home",
    "position": 3,
    "value": 1.5,
}


@dataclass(frozen=True)
class Hostile:
    """One message."""

    topic: str
    kind: str
    value: bytes | None
    key: str = "hostile"
    headers: dict[str, bytes] = field(default_factory=dict)
    bad: bool | None = None
    """It has to be refused; None: whether it is, is the schema's affair."""


def put_bombs(store: ObjectStore) -> list[str]:
    """Things that are no pictures, in our own bucket; their addresses."""
    small = io.BytesIO()
    Image.new("RGB", (64, 64)).save(small, "PNG")
    things = {
        "pixels.png": _png_of(60_000, 60_000),
        "zero.png": _png_of(0, 0),
        "cut.png": small.getvalue()[:60],
        "text.png": b"<svg onload=alert(1)>",
        "script.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "empty.png": b"",
        "zip.png": b"PK\x03\x04" + b"\0" * 100,
    }
    for name, data in things.items():
        store.put_new(f"hostile/{name}", data, "image/png")
    return [f"s3://{store.bucket}/hostile/{name}" for name in (*things, "not-there.png")]


def hostile(seed: int, count: int, bombs: list[str]) -> Iterator[Hostile]:
    """So many messages.

    Args:
        bombs: addresses of things in our bucket that are no pictures.
    """
    draw = random.Random(seed)
    kinds: tuple[Callable[[random.Random, str], Hostile], ...] = (
        _bytes,
        _truncated,
        _other_shape,
        _wrong_type,
        _huge,
        _deep,
        _not_a_number,
        _twice,
        _not_utf8,
        _bad_id,
        _time,
        _number,
        _headers,
        _well_formed,
        lambda random, topic: _address(random, topic, bombs),
    )
    for number in range(count):
        topic = draw.choice(TOPICS)
        yield kinds[number % len(kinds)](draw, topic)


def _good(draw: random.Random, topic: str, **fields: Any) -> dict[str, Any]:
    name = f"h-{draw.randrange(40)}"
    if topic == ItemPublish.topic:
        event: dict[str, Any] = {"item_id": name, "item_version": draw.randrange(1, 50), "title": "A Title"}
    elif topic == ItemRefresh.topic:
        event = {"item_id": name, "segments": ["neutral"]}
    else:
        event = {"event_id": f"e{draw.randrange(10**6)}", "user_id": name, "item_id": name, "kind": "click"}
    return event | fields


def _strict(topic: str) -> bool | None:
    """The learner's decoder, for its speed, looks neither for keys that are twice nor into fields that it skips."""
    return None if topic == UserBehavior.topic else True


def _id_of(topic: str) -> str:
    return "user_id" if topic == UserBehavior.topic else "item_id"


def _made(topic: str, kind: str, value: Any, bad: bool | None = None, **more: Any) -> Hostile:
    data = value if value is None or isinstance(value, bytes) else json.dumps(value).encode("utf-8", "surrogatepass")
    return Hostile(topic, kind, data, bad=bad, **more)


def _bytes(draw: random.Random, topic: str) -> Hostile:
    value = draw.choice((None, b"", b"\0", draw.randbytes(draw.randrange(1, 400)), b"\x1f\x8b" + draw.randbytes(40)))
    return _made(topic, "bytes", value, bad=True)


def _truncated(draw: random.Random, topic: str) -> Hostile:
    whole = json.dumps(_good(draw, topic)).encode()
    return _made(topic, "truncated", whole[: draw.randrange(1, len(whole))], bad=True)


def _other_shape(draw: random.Random, topic: str) -> Hostile:
    return _made(topic, "shape", draw.choice(([], "x", 1, True, [_good(draw, topic)], {}, [[]], 1e308)), bad=True)


def _wrong_type(draw: random.Random, topic: str) -> Hostile:
    event = _good(draw, topic)
    event[draw.choice([*event, *MORE])] = draw.choice(([], {}, 1.5, True, -1, None, {"a": [1]}, "x" * 70_000))
    return _made(topic, "type", event)


def _huge(draw: random.Random, topic: str) -> Hostile:
    name = draw.choice(("title", "reason", "decision", _id_of(topic), "unknown", "x" * 1000))
    return _made(topic, "huge", _good(draw, topic, **{name: "a" * draw.choice((600, 5_000, 300_000))}))


def _deep(draw: random.Random, topic: str) -> Hostile:
    depth = draw.choice((50, 190, 250, 1_000, 50_000))
    left, right = draw.choice((("[", "]"), ('{"a":', "}")))
    inside = left * depth + "1" + right * depth
    head = json.dumps(_good(draw, topic))[:-1]
    return _made(topic, "deep", f'{head}, "unknown": {inside}}}'.encode(), bad=True if depth >= 1_000 else None)


def _not_a_number(draw: random.Random, topic: str) -> Hostile:
    name = draw.choice(("value", "item_version", "priority", "unknown"))
    written = draw.choice(("NaN", "Infinity", "-Infinity", "1e999", "0x10", "01", "1_000", "٣"))
    return _made(topic, "number", f"{json.dumps(_good(draw, topic))[:-1]}, {json.dumps(name)}: {written}}}".encode())


def _twice(draw: random.Random, topic: str) -> Hostile:
    whole = json.dumps(_good(draw, topic))
    return _made(topic, "twice", f'{whole[:-1]}, "{_id_of(topic)}": "other"}}'.encode(), bad=_strict(topic))


def _not_utf8(draw: random.Random, topic: str) -> Hostile:
    text = json.dumps(_good(draw, topic, title="A Title"))
    value = draw.choice(
        (
            text.encode("utf-16"),
            text.encode("utf-8-sig"),
            text.replace("A Title", "A \udcff").encode("utf-8", "surrogateescape"),
            text.replace("A Title", "\ud800").encode("utf-8", "surrogatepass"),
        )
    )
    return _made(topic, "utf-8", value, bad=_strict(topic))


def _bad_id(draw: random.Random, topic: str) -> Hostile:
    wrong = draw.choice(IDS)
    return _made(topic, "id", _good(draw, topic, **{_id_of(topic): wrong}), bad=True)


def _time(draw: random.Random, topic: str) -> Hostile:
    if draw.random() < 0.5:
        return _made(topic, "time", _good(draw, topic, time=draw.choice(TIMES)), bad=True)
    return _made(topic, "extreme time", _good(draw, topic, time=draw.choice(EXTREME_TIMES)))


def _number(draw: random.Random, topic: str) -> Hostile:
    name = {ItemPublish.topic: "item_version", ItemRefresh.topic: "priority"}.get(topic, "position")
    number = draw.choice(NUMBERS)
    return _made(topic, "integer", _good(draw, topic, **{name: number}))


def _headers(draw: random.Random, topic: str) -> Hostile:
    """Around something that is refused, so that the headers have to be carried on."""
    return _made(
        topic, "headers", b"not an event", bad=True, headers=draw.choice(HEADERS), key=draw.choice(("", "k" * 9))
    )


def _well_formed(draw: random.Random, topic: str) -> Hostile:
    more = {name: MORE[name] for name in draw.sample(list(MORE), 3)}
    return _made(
        topic, "well-formed", _good(draw, topic, **more, **{"\u0000": "\u0000", "__class__": "x", "$ref": "#"})
    )


def _address(draw: random.Random, topic: str, bombs: list[str]) -> Hostile:
    """Items of their own, whose first version is this."""
    address = draw.choice((draw.choice(NOT_OURS), draw.choice(bombs)))
    event = {"item_id": f"a-{draw.randrange(10**9)}", "item_version": 1, "reference_image": address}
    return _made(ItemPublish.topic, "address", event | ({"title": "A Title"} if draw.random() < 0.5 else {}), bad=True)


def _png_of(width: int, height: int) -> bytes:
    """A picture of so many pixels by its header, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
