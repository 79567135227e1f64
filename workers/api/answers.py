"""From an item's row and a reader to the answer: choose, sign, presign. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from icg.preference import Head
from workers.api import problems
from workers.api.lookup import ItemRow
from workers.api.presign import Presigner
from workers.decisions import Choice, Reader, choose, page_worths, sign
from workers.events import NEUTRAL
from workers.policies import Person, Rule, assigned
from workers.records import cover_key
from workers.settings import Settings
from workers.switches import SwitchState


def today() -> date:
    return datetime.now(UTC).date()


class Answers:
    """Answers under the switches as they are now.

    Args:
        state: the switches, asked once an answer.
        head: the released preference model, None while there is none.
        day: decisions are sticky for one.
    """

    def __init__(
        self,
        settings: Settings,
        presigner: Presigner,
        state: Callable[[], SwitchState],
        head: Callable[[], Head | None] = lambda: None,
        day: Callable[[], date] = today,
    ) -> None:
        self._settings, self._presigner, self._state, self._day = settings.api, presigner, state, day
        self._head = head
        self._rule = Rule(settings.api.temperature, settings.preferences.residual_norm)
        self._key = settings.api.decision_key.get_secret_value().encode()
        self._buckets = {settings.s3.bucket, *settings.references.allowed_buckets}

    @property
    def personalization(self) -> bool:
        return self._state().personalization

    @property
    def blocked(self) -> frozenset[str]:
        return self._state().blocked

    def under_policy(self, reader: Reader, person: Person | None, surface: str | None) -> Reader:
        """The reader under the policy that this request falls under, with the taste that it asks for."""
        api = self._settings
        policy = assigned(api.policy, reader.user_id, surface, api.surfaces, api.split)
        taste = self._rule.taste(policy, person, self._head(), reader.user_id or "", self._day())
        return replace(reader, policy=policy, taste=taste)

    def choose(self, row: ItemRow, reader: Reader) -> Choice:
        """Today's choice for a reader."""
        return self.choices([row], reader)[0]

    def choices(self, rows: Sequence[ItemRow], reader: Reader) -> list[Choice]:
        """The same for a page, whose covers meet the reader's taste in one product."""
        state, day = self._state(), self._day()
        worths = page_worths([row.offer for row in rows], reader.taste if state.personalization else None)
        return [
            choose(
                row.offer,
                reader,
                row.item_id,
                day,
                exploration=self._settings.exploration,
                blocked=state.blocked,
                personalization=state.personalization,
                worth=worth,
            )
            for row, worth in zip(rows, worths, strict=True)
        ]

    def wants_parent(self, choice: Choice, reader: Reader) -> bool:
        """Would the parent of a segment that was asked for by its id make a difference?"""
        return reader.parent is None and choice.fallback in {"no_cover", "gate", "blocked"}

    def answer(self, row: ItemRow, reader: Reader, choice: Choice | None = None) -> dict[str, Any]:
        """The document of `models.Answer`.

        Raises:
            Problem: there is nothing to show.
        """
        day = self._day()
        choice = choice or self.choose(row, reader)
        segment = reader.segment_id if reader.segment_id is not None and self.personalization else NEUTRAL
        image: str
        valid_until: str | None
        if choice.cover_id is not None:
            address = self._presigner.address(cover_key(row.item_id, choice.cover_id))
            image, valid_until = address.url, address.valid_until
        else:
            image, valid_until = self.reference(row)
        return {
            "item_id": row.item_id,
            "item_version": row.item_version,
            "cover_id": choice.cover_id,
            "image": image,
            "image_valid_until": valid_until,
            "width": row.width if choice.cover_id is not None else None,
            "height": row.height if choice.cover_id is not None else None,
            "segment_id": segment,
            "cover_segment": choice.cover_segment,
            "served": choice.served,
            "fallback": choice.fallback,
            "generation": row.generation,
            "release": row.release,
            "decision": sign(
                choice,
                self._key,
                item_id=row.item_id,
                generation=row.generation,
                day=day,
                policy=reader.policy,
                segment_id=segment,
            ),
        }

    def reference(self, row: ItemRow) -> tuple[str, str | None]:
        """The platform's own picture: its https address, or a presigned one where it lies in S3.

        Raises:
            Problem: there is none, or it lies in a bucket that is not ours to open.
        """
        address = row.reference_image
        if address is not None and address.startswith("https://"):
            return address, None
        key = self.reference_key(row)
        if key is None:
            raise problems.no_picture(row.item_id)
        presigned = self._presigner.address(key[1], key[0])
        return presigned.url, presigned.valid_until

    def reference_key(self, row: ItemRow) -> tuple[str, str] | None:
        """Bucket and key of a reference image in S3, None where it is elsewhere or not ours to open."""
        bucket, slash, key = (row.reference_image or "").removeprefix("s3://").partition("/")
        if not (row.reference_image or "").startswith("s3://") or not slash or bucket not in self._buckets:
            return None
        return bucket, key

    def offer(self, row: ItemRow, scores: Sequence[float | None]) -> dict[str, Any]:
        """The document of `models.ItemCovers`: what each segment would be shown, blocked covers left out."""
        covers = []
        for segment, cover, fallback, score in zip(
            row.offer.segment_ids, row.offer.cover_ids, row.offer.fallbacks, scores, strict=True
        ):
            if cover in self.blocked:
                continue
            address = self._presigner.address(cover_key(row.item_id, cover))
            covers.append(
                {
                    "segment_id": segment,
                    "cover_id": cover,
                    "image": address.url,
                    "image_valid_until": address.valid_until,
                    "fallback": fallback or None,
                    "score": score,
                }
            )
        return {
            "item_id": row.item_id,
            "item_version": row.item_version,
            "generation": row.generation,
            "release": row.release,
            "width": row.width,
            "height": row.height,
            "covers": covers,
        }


def with_parent(reader: Reader, parent: str | None) -> Reader:
    return replace(reader, parent=parent)
