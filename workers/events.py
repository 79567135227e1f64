"""Every event as a pydantic model, with its topic and its key.

A reader ignores fields that it does not know and refuses, with a reason, what breaks the schema. Values are JSON;
CloudEvents attributes travel in `ce_` headers (`headers_for`), so that the value stays what the producer wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)

ID_PATTERN = r"^[A-Za-z0-9._~-]{1,128}$"
NEUTRAL = "neutral"
"""The reserved segment of nobody in particular."""


def _not_dots(value: str) -> str:
    # "." and ".." match the pattern but would walk up a path in S3 consoles, file systems and URLs.
    if value in {".", ".."}:
        raise ValueError("an id may not be '.' or '..'")
    return value


class _NotDots:
    """Says so in the JSON Schema."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core_schema), "not": {"enum": [".", ".."]}}


def _written_out(value: object) -> object:
    # pydantic would take 1 and "1" for a second in 1970.
    if not isinstance(value, datetime) and not (isinstance(value, str) and _TIME.match(value)):
        raise ValueError("a time is written as in 2026-11-21T12:00:00Z")
    return value


_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")
Time = Annotated[AwareDatetime, BeforeValidator(_written_out)]
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN), AfterValidator(_not_dots), _NotDots()]
Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
ADDRESS_PATTERN = r"^(s3|https)://[^\s]+$"
Address = Annotated[str, StringConstraints(pattern=ADDRESS_PATTERN, max_length=2000)]
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
LANGUAGE_PATTERN = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$"

_PATTERNS = {
    ID_PATTERN: "an id is 1 to 128 of A-Z a-z 0-9 . _ ~ -",
    ADDRESS_PATTERN: "an address begins with s3:// or https:// and holds no space",
    DIGEST_PATTERN: "a sha256 is 64 of 0-9 a-f",
    LANGUAGE_PATTERN: "a language is written as in en or pt-BR",
}
"""What people read instead of the expression."""


class Outcome(StrEnum):
    """How an event ends; each ends in exactly one."""

    DRAWN = "drawn"
    UNCHANGED = "unchanged"
    SUPERSEDED = "superseded"
    RETRACTED = "retracted"
    DEAD_LETTERED = "dead-lettered"


class Event(BaseModel):
    """What all events share. One whose producer gave it no id is known by its topic, partition and offset."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    topic: ClassVar[str]

    time: Time = Field(default_factory=lambda: datetime.now(UTC), description="When it happened, with a zone.")

    def key(self) -> str | None:
        """The Kafka key, None for a topic without one."""
        raise TypeError(f"{type(self).__name__} names no key")

    def encode(self) -> bytes:
        """The value as UTF-8 JSON, absent fields left out."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def decode(cls, value: bytes | None) -> Self:
        """Parse a value.

        Raises:
            BadEvent: with a reason that a person understands.
        """
        if value is None:
            raise BadEvent("the message has no value")
        _check_text(value)
        try:
            event = cls.model_validate_json(value)
        except ValidationError as error:
            raise BadEvent(explain(error)) from None
        try:
            json.loads(value, object_pairs_hook=unique_keys)
        except ValueError as error:
            raise BadEvent(str(error)) from None
        return event


class BadEvent(ValueError):
    """The event itself is at fault: it goes to `dead-letters` with this reason."""


def _check_text(value: bytes) -> None:
    if value.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise BadEvent("the value begins with a byte order mark; it should be JSON in UTF-8 without one")
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise BadEvent(f"the value is not UTF-8: byte {value[error.start]:#04x} at {error.start}") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=…)`: of a key that is there twice, readers would each take another value.

    Raises:
        ValueError: a key is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def explain(error: ValidationError, most: int = 3) -> str:
    """A validation error in one line: which field, what is wrong, never the whole input."""
    problems = [
        ": ".join(filter(None, [".".join(map(str, item["loc"])), _said(item)]))
        for item in error.errors(include_url=False, include_input=False)
    ]
    more = f" (and {len(problems) - most} more)" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def _said(problem: Any) -> str:
    """pydantic's message, without its expressions and prefixes."""
    message = str(problem["msg"])
    match problem["type"]:
        case "string_pattern_mismatch":
            return _PATTERNS.get(problem["ctx"]["pattern"], message)
        case "value_error":
            return message.removeprefix("Value error, ")
        case "json_invalid":
            return "not JSON: " + message.removeprefix("Invalid JSON: ")
    return message


class ItemPublish(Event):
    """A content platform published, changed or retracted an item."""

    topic: ClassVar[str] = "item-publish"

    item_id: Id
    item_version: int = Field(ge=1, lt=2**63, strict=True, description="Grows with each change of the item.")
    action: Literal["publish", "retract"] = "publish"
    title: Title | None = None
    reference_image: Address | None = Field(None, description="s3:// or https:// address of the item's own picture.")
    category: Annotated[str, StringConstraints(max_length=128)] | None = None
    language: Annotated[str, StringConstraints(pattern=LANGUAGE_PATTERN)] | None = None

    def key(self) -> str:
        return self.item_id

    @model_validator(mode="after")
    def _something_to_draw(self) -> Self:
        if self.action == "publish" and self.title is None and self.reference_image is None:
            raise ValueError("a published item needs a title, a reference_image or both")
        return self


class ItemRefresh(Event):
    """Redraw covers of an item that is already published. Never creates an item, never changes its version."""

    topic: ClassVar[str] = "item-refresh"

    item_id: Id
    item_version: int | None = Field(None, ge=1, lt=2**63, description="Only this version; any version when absent.")
    segments: tuple[Id, ...] | None = Field(
        None, max_length=1000, description="Which segments; all of the release when absent."
    )
    reason: Annotated[str, StringConstraints(max_length=256)] = "asked"
    release: int | None = Field(
        None, ge=1, lt=2**63, description="The release wanted; a worker with an older one waits for it."
    )
    priority: int = Field(0, ge=0, le=9)

    def key(self) -> str:
        return self.item_id


class BehaviorKind(StrEnum):
    IMPRESSION = "impression"
    CLICK = "click"
    LIKE = "like"
    DISLIKE = "dislike"
    DWELL = "dwell"


class UserBehavior(Event):
    """What a person did with a cover. `decision` is the api's token, echoed."""

    topic: ClassVar[str] = "user-behavior"

    event_id: Id
    user_id: Id
    item_id: Id
    cover_id: Digest | None = None
    segment_id: Id | None = None
    kind: BehaviorKind
    impression_id: Id | None = Field(None, description="The impression that a click, like or dislike answers.")
    page_id: Id | None = None
    surface: Annotated[str, StringConstraints(max_length=64)] | None = None
    position: int | None = Field(None, ge=0, le=10_000)
    decision: Annotated[str, StringConstraints(max_length=4096)] | None = None
    position_propensity: float | None = Field(
        None, gt=0, le=1, description="Chance that what stands at this position is looked at, as the platform knows it."
    )
    value: float | None = Field(None, description="Seconds of dwell, stars, …")

    def key(self) -> str:
        return self.user_id


class UserErasure(Event):
    """Forget this person."""

    topic: ClassVar[str] = "user-erasure"

    user_id: Id

    def key(self) -> str:
        return self.user_id


class Source(BaseModel):
    """Which message caused something: topic, partition and offset, and the producer's own id where it gave one."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    topic: str
    partition: int
    offset: int
    event_id: str | None = None


class ReadyCover(BaseModel):
    """One cover as recommenders see it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    segment_id: Id
    rendition: Id
    cover_id: Digest
    address: str
    sha256: Digest
    width: int
    height: int
    format: Literal["webp"] = "webp"
    rewards: dict[str, float] = {}
    fallback: Literal["neutral", "reference"] | None = Field(
        None, description="What stands in for this segment's own cover, None where it has one."
    )


class CoverReady(Event):
    """How an event on an item ended, and the covers that the item has now. Made from the manifest alone."""

    topic: ClassVar[str] = "cover-ready"

    item_id: Id
    item_version: int
    action: Literal["ready", "retired"]
    outcome: Outcome
    reason: str | None = Field(None, description="Why an event drew nothing.")
    source: Source
    covers: tuple[ReadyCover, ...] = ()
    release: int
    generation: int

    def key(self) -> str:
        return self.item_id

    def event_id(self) -> str:
        """The same for a replay of the same message over the same manifest."""
        parts = (self.source.topic, self.source.partition, self.source.offset, self.item_id, self.generation)
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


Vectors = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
"""Rows of float32, little-endian, one after the other, in base64: exact, and read 20 times as fast as numbers."""


class PreferencePairs(Event):
    """A bounded sample of pairs for the one trainer of the shared weights. Carries no user id.

    In each pair the cover `chosen`, shown to the person `users`, was preferred to the cover `rejected`, shown to the
    person `others`. Vectors of the people are as they were when the pair was learned, those of covers are less the mean
    of their item's covers, which is `items`. People are the source partition's own numbers and mean nothing elsewhere.
    """

    topic: ClassVar[str] = "preference-pairs"

    sequence: int = Field(ge=0, description="Grows per source partition; a trainer drops what it has seen.")
    source_partition: int
    space: Digest
    users: Vectors
    chosen: Vectors
    rejected: Vectors
    others: Vectors
    items: Vectors
    weights: list[float]
    chosen_weights: list[float] = Field(description="Inverse choice propensity of `chosen`, over a uniform choice's.")
    rejected_weights: list[float]
    winners: list[int] = Field(description="Numbers of the people in the source partition.")
    losers: list[int]
    held_out: list[int] = Field(description="0: trains. 1 or 2: judges, because of the winner or of the loser.")
    forget: list[int] = Field([], description="People whom the trainer forgets: numbers of the source partition.")

    def key(self) -> None:
        return None


class ModelUpdate(Event):
    """Announces a release; the truth is `models/release.json`."""

    topic: ClassVar[str] = "model-updates"

    number: int = Field(ge=1)
    part: str = Field(description="The part whose change made this release.")
    parts: dict[str, Digest]
    reason: str = ""

    def key(self) -> str:
        return self.part


DEAD_LETTERS = "dead-letters"
"""Carries the original bytes under the original key; why, where from, attempt and trace are headers (`dlq_*`)."""

EVENTS: tuple[type[Event], ...] = (
    ItemPublish,
    ItemRefresh,
    UserBehavior,
    UserErasure,
    CoverReady,
    PreferencePairs,
    ModelUpdate,
)


def headers_for(event: Event, event_id: str, source: str, trace: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """CloudEvents 1.0 attributes in Kafka's binary content mode.

    Args:
        event_id: unique within `source`.
        source: who speaks, a URI reference such as `/icg/covers`.
        trace: W3C headers (`traceparent`, `tracestate`) to carry on.
    """
    values = {
        "ce_specversion": "1.0",
        "ce_id": event_id,
        "ce_source": source,
        "ce_type": f"icg.{event.topic}.v1",
        "ce_time": event.time.isoformat(),
        "content-type": "application/json",
        **(trace or {}),
    }
    return {name: value.encode() for name, value in values.items()}


def dead_letter_headers(
    reason: str, source: Source, service: str, attempt: int = 1, original: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """Headers of a dead letter: the original ones, then why, where from and by whom it was refused."""
    return {
        **(original or {}),
        "dlq_reason": reason[:1000].encode(),
        "dlq_topic": source.topic.encode(),
        "dlq_partition": str(source.partition).encode(),
        "dlq_offset": str(source.offset).encode(),
        "dlq_service": service.encode(),
        "dlq_attempt": str(attempt).encode(),
        "dlq_time": datetime.now(UTC).isoformat().encode(),
    }
