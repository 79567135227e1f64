"""The documents that the api answers with, for OpenAPI and for tests. Answers themselves are built as plain dicts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from workers.decisions import Fallback, Served
from workers.events import Digest, Id

COVER = "5f0c8a1d3b7e49260d4f9c1e8ab27356f1e0d9c8b7a695847362514039281706"
MOST_ITEMS = 200

_ANSWER: dict[str, Any] = {
    "item_id": "lantern",
    "item_version": 3,
    "cover_id": COVER,
    "image": f"https://covers.example/icg/covers/lantern/{COVER}.webp?X-Amz-Algorithm=AWS4-HMAC-SHA256&…",
    "image_valid_until": "2026-11-21T10:15:00Z",
    "width": 64,
    "height": 64,
    "segment_id": "s-4",
    "cover_segment": "s-4",
    "served": "segment",
    "fallback": None,
    "generation": 2,
    "release": 5,
    "decision": "eyJjIjpbIjVmMGM4YTFkM2I3ZSJdfQ.3q2-7w",
}
_PROBLEM: dict[str, Any] = {
    "type": "urn:icg:problem:unknown-item",
    "title": "No such item",
    "status": 404,
    "detail": "No item lantern has been published, or it is not drawn yet.",
    "instance": "/v1/covers/lantern",
}


class Document(BaseModel):
    model_config = ConfigDict(frozen=True)


class Problem(Document):
    """RFC 9457."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_PROBLEM]})

    type: str = Field(description="Names the kind of problem: `urn:icg:problem:…`.")
    title: str
    status: int
    detail: str = Field(description="About this one, for a person.")
    instance: str | None = None


class Answer(Document):
    """The cover to show for one item, and why it is this one."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_ANSWER]})

    item_id: Id
    item_version: int
    cover_id: Digest | None = Field(description="None for a reference image of which we have no copy in our size.")
    image: str = Field(description="A GET on it gives the picture; good for at least half its life from now.")
    image_valid_until: datetime | None = Field(description="None where the address does not end.")
    width: int | None
    height: int | None
    segment_id: Id = Field(description="The reader's segment; `neutral` for nobody in particular.")
    cover_segment: Id | None = Field(description="The segment that this picture was drawn for.")
    served: Served = Field(
        description="Whose cover it is, seen from the reader; `other`, `exploration`: some other segment's, because "
        "the policy likes it for this reader, or by chance."
    )
    fallback: Fallback | None = Field(description="Why the policy did not choose the own segment's cover.")
    generation: int
    release: int
    decision: str | None = Field(
        description="Echo it in `user-behavior`. Opaque; under 4096 characters. None for a reference image."
    )


class BatchRequest(BaseModel):
    """One page of a ranking: what one reader is about to see."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"user_id": "user-17", "item_ids": ["lantern", "the-red-kite"]}]},
    )

    user_id: Id | None = None
    segment_id: Id | None = Field(None, description="Instead of the user's own segment.")
    surface: str | None = Field(
        None, max_length=64, description="Where the page is shown; a surface may have a policy of its own."
    )
    item_ids: list[Annotated[str, StringConstraints(max_length=1000)]] = Field(
        min_length=1, max_length=MOST_ITEMS, description="In the order of the page. A bad id spoils only its own entry."
    )


class Refused(Document):
    """An entry of a page that has no cover."""

    item_id: str
    problem: Problem


class BatchAnswer(Document):
    """One entry an item, in the order asked."""

    covers: list[Answer | Refused]


class OfferedCover(Document):
    segment_id: Id
    cover_id: Digest
    image: str
    image_valid_until: datetime
    fallback: Literal["neutral", "reference"] | None = Field(
        description="What stands in for a cover under the quality gate: the neutral one, or the platform's own picture."
    )
    score: float | None = Field(description="The preference model's, for this segment; None if read from S3.")


class ItemCovers(Document):
    """All covers of an item that may be shown."""

    item_id: Id
    item_version: int
    generation: int
    release: int
    width: int
    height: int
    covers: list[OfferedCover]


class ListedCover(Document):
    segment_id: Id
    cover_id: Digest
    rewards: dict[str, float]
    fallback: Literal["neutral", "reference"] | None
    blocked: bool
    image: str = Field(description="Relative to the api, the same for ever.")
    width: int
    height: int


class ListedItem(Document):
    item_id: Id
    item_version: int
    generation: int
    release: int
    title: str | None
    category: str | None
    language: str | None
    reference_image: str | None = Field(description="Where the platform says it is.")
    reference: str | None = Field(description="Where the api shows it; None if it lies outside of our store.")
    time: datetime
    covers: list[ListedCover]


class ItemList(Document):
    """A page of items in the order of their ids."""

    items: list[ListedItem]
    next: Id | None = Field(description="Give it as `after` for the next page; None: this is the last.")
    release: int | None = Field(description="The release that covers are drawn under now.")
    personalization: bool


class BlockInfo(Document):
    reason: str
    by: str
    time: datetime


class Lineage(Document):
    """Where a cover comes from: its sidecar without the embedding."""

    cover_id: Digest
    item_id: Id
    item_version: int
    segment_id: Id
    sha256: Digest
    bytes: int
    inputs: dict[str, Any] = Field(description="All that decided the pixels: hashes, revisions, sampler, seed, size.")
    rewards: dict[str, float]
    space: Digest
    release: int
    source: dict[str, Any] = Field(description="The event that asked for it: topic, partition, offset, event_id.")
    time: datetime
    image: str
    blocked: bool
