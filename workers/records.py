"""What lies in object storage as JSON: manifest, sidecar, release, model card, and the keys under which they lie.

Pure: no I/O here. `workers.storage` reads and writes bytes, these classes say what the bytes mean.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from workers.events import Digest, Id, Outcome, Source

RELEASE_KEY = "models/release.json"
SWITCHES_KEY = "switches.json"

Part = Literal["base", "mllm", "adapter", "rewards", "space", "map", "preference", "segments"]
"""The parts of a release. `space` holds the frozen cover encoder, `map` takes imported user embeddings into it."""


def canonical_json(value: Any) -> bytes:
    """One spelling for one value: sorted keys, no blanks, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def cover_key(item_id: str, cover_id: str) -> str:
    return f"covers/{item_id}/{cover_id}.webp"


def sidecar_key(item_id: str, cover_id: str) -> str:
    return f"covers/{item_id}/{cover_id}.json"


def manifest_key(item_id: str) -> str:
    return f"manifests/{item_id}.json"


def part_prefix(part: str, revision: str) -> str:
    return f"models/{part}/{revision}/"


class Record(BaseModel):
    """A JSON object in the store."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def encode(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls.model_validate_json(data)


def _now() -> datetime:
    return datetime.now(UTC)


class Rendition(Record):
    """Size and format of a cover file."""

    rendition_id: Id = "default"
    width: int = Field(64, ge=16, le=4096)
    height: int = Field(64, ge=16, le=4096)
    format: Literal["webp"] = "webp"
    quality: int = Field(90, ge=1, le=100, description="100 is lossless.")


class CoverInputs(Record):
    """All that decides a cover's pixels, and nothing else: its hash is the `cover_id`."""

    item_id: Id
    item_version: int
    title_sha256: Digest | None = None
    reference_sha256: Digest | None = None
    vector_sha256: str = Field(description="sha256 of the segment's own float32 vector, or 'neutral'.")
    base: Digest
    mllm: Digest
    adapter: Digest
    sampler: dict[str, Any] = Field(
        description="Steps, branch, scheduler, guidance, guided, personalization, dtype, slots."
    )
    seed: int
    rendition: Rendition

    def cover_id(self) -> str:
        return sha256(canonical_json(self.model_dump(mode="json")))


def seed_of(item_id: str, item_version: int) -> int:
    """Segments of one item share their noise: the seed hashes item and version. 0 <= seed < 2**63."""
    digest = hashlib.sha256(f"{item_id}\n{item_version}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Sidecar(Record):
    """Beside each cover, written before the manifest: where it comes from, its rewards and its preference embedding."""

    cover_id: Digest
    item_id: Id
    item_version: int
    segment_id: Id = Field(description="The segment for which it was first drawn.")
    sha256: Digest
    bytes: int
    inputs: CoverInputs
    rewards: dict[str, float]
    embedding: list[float] = Field(description="Preference embedding of the picture, in `space`.")
    space: Digest = Field(description="Revision of the space whose cover encoder made the embedding.")
    release: int
    source: Source
    trace_id: str | None = Field(None, description="OpenTelemetry trace in which it was drawn.")
    time: AwareDatetime = Field(default_factory=_now)


class ManifestCover(Record):
    """One segment's cover in one rendition."""

    cover_id: Digest
    sha256: Digest
    width: int
    height: int
    rewards: dict[str, float] = {}
    fallback: Literal["neutral", "reference"] | None = None


class Manifest(Record):
    """An item's commit record: what it says is so."""

    item_id: Id
    item_version: int
    state: Literal["ready", "retracted"]
    generation: int = Field(ge=1, description="+1 with each write.")
    release: int
    title: str | None = None
    reference_image: str | None = None
    reference_sha256: Digest | None = None
    category: str | None = None
    language: str | None = None
    published_by: Source = Field(description="The publish or retract event that made this item_version.")
    source: Source = Field(description="The event that made this generation.")
    outcome: Outcome = Outcome.DRAWN
    covers: dict[Id, dict[Id, ManifestCover]] = Field({}, description="segment_id, then rendition_id.")
    time: AwareDatetime = Field(default_factory=_now)


class Release(Record):
    """One consistent set of revisions. The number only grows; a rollback is a new number that names old revisions."""

    number: int = Field(ge=1)
    parts: dict[Part, Digest]
    reason: str = ""
    time: AwareDatetime = Field(default_factory=_now)


class ModelCard(Record):
    """`card.json` of one revision of one part. The revision hashes part, space and files, not metrics or time."""

    part: Part
    revision: Digest
    space: Digest | None = Field(None, description="Revision of the space that this part is valid in, if it has one.")
    files: dict[str, Digest] = Field(description="Path below the revision's prefix, and its sha256.")
    made_by: str = ""
    parents: dict[str, str] = Field({}, description="Revisions from which it was made.")
    metrics: dict[str, float] = {}
    notes: str = ""
    time: AwareDatetime = Field(default_factory=_now)


def revision_of(part: str, space: str | None, files: dict[str, str]) -> str:
    """Content hash of a part: the same files in the same space are the same revision."""
    return sha256(canonical_json({"part": part, "space": space, "files": files}))


class Segment(Record):
    """A group of users with one vector."""

    segment_id: Id
    parent: Id | None = None
    users: int = Field(0, ge=0)
    vector: list[float]


class SegmentSet(Record):
    """`segments.json`, the file of the part `segments`. `neutral` is in every set by itself and never listed."""

    space: Digest
    segments: list[Segment]


class Block(Record):
    """One use of an off switch, kept for the record."""

    cover_id: Digest
    reason: str = ""
    by: str = ""
    time: AwareDatetime = Field(default_factory=_now)
    lifted: AwareDatetime | None = None


class Switches(Record):
    """`switches.json`: what is off. The api reads it every few seconds."""

    personalization: bool = True
    blocks: list[Block] = []
    log: list[str] = Field([], description="Who switched what, when, one line each.")
