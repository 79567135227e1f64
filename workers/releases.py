"""Releases of trained parts: content-addressed parts, one growing number. `workers.following` tells of new ones.

The truth is `models/release.json` in object storage; `model-updates` only says that it is worth a look. Parts are
immutable and verified by sha256 wherever they are read. A number may be skipped: of two who publish at once one takes
the next number but one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from workers.events import ModelUpdate, explain
from workers.exceptions import BadPart, Conflict, StorageFault
from workers.messaging import Producer
from workers.records import RELEASE_KEY, ModelCard, Part, Release, SegmentSet, part_prefix, revision_of, sha256
from workers.storage import ObjectStore

log = logging.getLogger(__name__)

CARD = "card.json"
SEGMENTS_FILE = "segments.json"
_FILE = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DIGITS = re.compile(r"[0-9a-f]{1,64}")
_DAY = 24 * 3600


def history_key(number: int) -> str:
    return f"models/releases/{number}.json"


class Releases:
    """Trained parts and releases in one bucket, with a local cache of parts."""

    def __init__(self, store: ObjectStore, cache: Path, producer: Producer | None = None) -> None:
        """
        Args:
            cache: folder, shared by processes; parts lie at parts/{part}/{revision}/ below it.
            producer: announces releases on `model-updates`; without one followers see them within 30 s.
        """
        self._store = store
        self._cache = cache
        self._producer = producer

    def current(self) -> Release | None:
        """The release in force, None before the first.

        Raises:
            BadPart: `models/release.json` is not a release.
        """
        stored = self._store.get(RELEASE_KEY)
        return _decode(stored.data, RELEASE_KEY) if stored else None

    def release(self, number: int) -> Release:
        """An older release.

        Raises:
            BadPart: there was none of that number.
        """
        stored = self._store.get(history_key(number))
        if stored is None:
            raise BadPart(f"there is no release {number}")
        return _decode(stored.data, history_key(number))

    def put_part(
        self,
        part: Part,
        files: Mapping[str, Path | bytes],
        *,
        space: str | None = None,
        made_by: str = "",
        parents: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        notes: str = "",
    ) -> str:
        """Store a part; the card comes last, so a part with a card is whole. The same content again changes nothing.

        Args:
            files: path within the part (`a/b.safetensors`), and its content or where that lies.
            space: revision of the space that the part is valid in.

        Returns:
            Its revision.

        Raises:
            BadPart: no files, or a path that is not one.
        """
        if not files:
            raise BadPart(f"{part}: no files")
        for name in files:
            _check_name(part, name)
        digests = {name: _digest(files[name]) for name in sorted(files)}
        revision = revision_of(part, space, digests)
        prefix = part_prefix(part, revision)
        if self._store.exists(prefix + CARD):
            return revision
        for name, content in files.items():
            kind = "application/json" if name.endswith(".json") else "application/octet-stream"
            self._store.put_new(prefix + name, content, kind)
        card = ModelCard(
            part=part,
            revision=revision,
            space=space,
            files=digests,
            made_by=made_by,
            parents=dict(parents or {}),
            metrics=dict(metrics or {}),
            notes=notes,
        )
        self._store.put_new(prefix + CARD, card.encode(), "application/json")
        return revision

    def put_folder(self, part: Part, folder: Path, *, space: str | None = None, made_by: str = "") -> str:
        """`put_part` of every file below a folder. A `fetch` on this machine then finds it in the cache."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        revision = self.put_part(part, files, space=space, made_by=made_by)
        cached = self._cache / "parts" / part / revision
        if not cached.exists():
            arriving = cached.with_name(f".{revision}.{uuid.uuid4().hex}")
            arriving.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(folder, arriving, copy_function=_link)
            try:
                arriving.rename(cached)
            except OSError:  # another process was faster
                shutil.rmtree(arriving, ignore_errors=True)
        return revision

    def segments(self, release: Release) -> SegmentSet | None:
        """The segments of a release, None where it has none.

        Raises:
            BadPart: as `segment_set`.
        """
        return self.segment_set(release.parts["segments"]) if "segments" in release.parts else None

    def segment_set(self, revision: str) -> SegmentSet:
        """A set of segments, released or not.

        Raises:
            BadPart: as `fetch`, or the file is not what it should be.
        """
        path = self.fetch("segments", revision) / SEGMENTS_FILE
        try:
            return SegmentSet.decode(path.read_bytes())
        except (OSError, ValidationError) as error:
            said = explain(error) if isinstance(error, ValidationError) else str(error)
            raise BadPart(f"segments {revision[:12]}: {said}") from None

    def find(self, part: Part, start: str) -> str:
        """The one revision of a part that begins so.

        Raises:
            BadPart: none does, or several do.
        """
        if not _DIGITS.fullmatch(start):
            raise BadPart(f"{part}: {start[:80]!r} is no revision: 64 hexadecimal digits, or the first few")
        keys = self._store.list(f"models/{part}/{start}")
        found = {key.split("/")[2] for key in keys if key.endswith(f"/{CARD}")}
        if len(found) != 1:
            raise BadPart(
                f"{part}: {len(found) or 'no'} revision{'s begin' if len(found) > 1 else ' begins'} with {start!r}"
            )
        return found.pop()

    def card(self, part: Part, revision: str) -> ModelCard:
        """The card of a revision.

        Raises:
            BadPart: there is none, or it is not what its own revision says.
        """
        if not _DIGEST.fullmatch(revision):
            raise BadPart(f"{part}: {revision[:80]!r} is no revision")
        stored = self._store.get(part_prefix(part, revision) + CARD)
        if stored is None:
            raise BadPart(f"{part} {revision[:12]}: no card in the store")
        try:
            card = ModelCard.decode(stored.data)
        except ValidationError as error:
            raise BadPart(f"{part} {revision[:12]}: its card is no card: {explain(error)}") from None
        if card.part != part or revision_of(part, card.space, card.files) != revision:
            raise BadPart(f"{part} {revision[:12]}: its card describes something else")
        for name in card.files:
            _check_name(part, name)
        return card

    def fetch(self, part: Part, revision: str) -> Path:
        """The folder with a part's files, each verified, downloaded unless the cache has it.

        Several processes may fetch the same part at once: the first that is done wins.

        Raises:
            BadPart: a file is missing or its sha256 is not the card's.
            StorageFault: the store, or the local disk.
        """
        card = self.card(part, revision)
        parts = self._cache / "parts" / part
        folder = parts / revision
        try:
            if folder.is_dir():
                if all(_same(folder / name, digest) for name, digest in card.files.items()):
                    return folder
                log.warning("%s %s in the cache is damaged: fetching it again", part, revision[:12])
                _discard(folder)
            parts.mkdir(parents=True, exist_ok=True)
            _sweep(parts)
            arriving = parts / f".{revision}.{uuid.uuid4().hex}"
            try:
                for name, digest in card.files.items():
                    self._fetch_file(card, name, digest, arriving / name)
                (arriving / CARD).write_bytes(card.encode())
                try:
                    arriving.rename(folder)
                except OSError:
                    if not folder.is_dir():  # nobody else was faster
                        raise
            finally:
                shutil.rmtree(arriving, ignore_errors=True)
        except OSError as error:
            raise StorageFault(f"{part} {revision[:12]}: {folder.parent}: {error.strerror or error}") from error
        return folder

    def _fetch_file(self, card: ModelCard, name: str, digest: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = self._store.download(part_prefix(card.part, card.revision) + name, path)
        if found is None:
            raise BadPart(f"{card.part} {card.revision[:12]}: {name} is not in the store")
        if found != digest:
            raise BadPart(f"{card.part} {card.revision[:12]}: {name} has sha256 {found[:12]}, not {digest[:12]}")

    def publish(self, changes: Mapping[Part, str], reason: str, made_by_part: str) -> Release:
        """Make a new release: the present one with these parts changed. Then announce it.

        Args:
            changes: part and revision.
            made_by_part: the part whose change made it: the key on `model-updates`.

        Raises:
            BadPart: a revision is not in the store, or parts of two spaces would be mixed.
        """
        return self._publish(lambda parts: {**parts, **changes}, reason, made_by_part)

    def rollback(self, number: int, reason: str = "") -> Release:
        """Make a new release that names the revisions of an older one.

        Raises:
            BadPart: there was no such release, or one of its parts is gone.
        """
        old = self.release(number)
        return self._publish(lambda _: dict(old.parts), reason or f"rollback to {number}", "rollback")

    def _publish(self, change: Callable[[dict[Part, str]], dict[Part, str]], reason: str, made_by_part: str) -> Release:
        for _ in range(100):
            stored = self._store.get(RELEASE_KEY)
            before = _decode(stored.data, RELEASE_KEY) if stored else None
            parts = change(dict(before.parts) if before else {})
            self._check(parts)
            release = self._into_history(before.number + 1 if before else 1, parts, reason)
            try:
                self._store.put_if(RELEASE_KEY, release.encode(), stored.etag if stored else None)
            except Conflict:
                self._store.delete(history_key(release.number))  # it never was in force
                continue
            log.info("release %d: %s", release.number, reason, extra={"part": made_by_part})
            if self._producer is not None:
                update = ModelUpdate(
                    number=release.number, part=made_by_part, parts=dict(release.parts), reason=release.reason
                )
                self._producer.send_event(update, event_id=f"release-{release.number}")
            return release
        raise StorageFault(f"{RELEASE_KEY} changed 100 times while we tried to")

    def _into_history(self, number: int, parts: dict[Part, str], reason: str) -> Release:
        while True:
            release = Release(number=number, parts=parts, reason=reason)
            if self._store.put_new(history_key(number), release.encode(), "application/json"):
                return release
            number += 1  # taken by another who publishes now, or by one who died before it was in force

    def _check(self, parts: Mapping[Part, str]) -> None:
        space = parts.get("space")
        for part, revision in parts.items():
            card = self.card(part, revision)
            if card.space is not None and space is not None and card.space != space:
                raise BadPart(f"{part} {revision[:12]} is of space {card.space[:12]}, the release of {space[:12]}")


def _decode(data: bytes, key: str) -> Release:
    try:
        return Release.decode(data)
    except ValidationError as error:
        raise BadPart(f"{key} is no release: {explain(error)}") from None


def _check_name(part: str, name: str) -> None:
    # No "..", no absolute path, no hidden file, nothing that a file system or URL reads otherwise than S3.
    if not _FILE.fullmatch(name) or len(name) > 200 or name == CARD:
        raise BadPart(f"{part}: {name[:80]!r} is no name for a file of a part")


def _digest(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return sha256(content)
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(source: str, target: str) -> str:
    """A hard link where the file system can: parts are never changed, and may be gigabytes."""
    try:
        os.link(source, target)
        return target
    except OSError:
        return str(shutil.copy2(source, target))


def _same(path: Path, digest: str) -> bool:
    return path.is_file() and not path.is_symlink() and _digest(path) == digest


def _discard(folder: Path) -> None:
    # Renamed first: a process that holds files of it open keeps them, one that looks finds none or all.
    away = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def _sweep(parts: Path) -> None:
    """Remove what processes that died while fetching left more than a day ago."""
    for each in parts.glob(".*"):
        if each.stat().st_mtime < time.time() - _DAY:
            shutil.rmtree(each, ignore_errors=True)
