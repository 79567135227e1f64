"""State with the source offsets inside, as one safetensors file an offset: `state/preferences/{who}/{offset:020d}`.

Written with `If-None-Match: *`. Checkpoints are cut at the same offsets by whoever reads the partition, so of two
learners that both believe they own it the second finds its key taken, and stops. Tensors are arrays; lists of names are
JSON inside a byte tensor; all else is JSON in the file's metadata. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from dataclasses import fields
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from icg.preference import Head
from workers.exceptions import Conflict
from workers.preferences.centres import Centres
from workers.preferences.erased import Erased
from workers.preferences.history import History
from workers.preferences.judging import Scored
from workers.preferences.learner import Learner, Queue
from workers.preferences.names import Names
from workers.preferences.pairs import Rows
from workers.preferences.sample import Budget
from workers.preferences.store import Kept
from workers.preferences.tastes import Limits, Tastes
from workers.preferences.trainer import Trainer
from workers.preferences.window import OPEN, Counts, Window
from workers.storage import ObjectStore

log = logging.getLogger(__name__)

FORMAT = 3
KEPT = 3
"""Checkpoints kept of each partition, the newest."""
TRAINER = "trainer"
ROOT = "state/preferences/"
FORGOTTEN = f"{ROOT}forgotten/"
Tensors = dict[str, NDArray[Any]]


class Superseded(Exception):
    """Somebody else has written this partition's checkpoint: it is theirs now, and ours must stop."""


class BadState(ValueError):
    """Not a checkpoint of ours."""


class Checkpoints:
    """The checkpoints of one process."""

    def __init__(self, store: ObjectStore, writer: str | None = None) -> None:
        self._store = store
        self.writer = writer or uuid.uuid4().hex

    def write(self, who: int | str, offset: int, tensors: Tensors, meta: dict[str, Any]) -> None:
        """Write a state that has read everything before `offset`.

        Raises:
            Superseded: another process has written it.
            StorageFault: try again; our own first try, if it was done, is recognised.
        """
        data = self._encoded(tensors, meta)
        key = _key(who, offset)
        if not self._store.put_new(key, data, "application/octet-stream"):
            stored = self._store.get(key)
            if stored is not None and stored.data != data:
                raise Superseded(f"{key} was written by another learner")
        self.keep(who, KEPT)

    def rewrite(self, who: int | str, offset: int, tensors: Tensors, meta: dict[str, Any], former: str) -> None:
        """Write the state at this offset, in the place of one that was written there before; all others go. For what
        has to leave the checkpoints as well.

        Args:
            former: writer of the checkpoint that this state was read from.

        Raises:
            Superseded: another process has written it.
            StorageFault: try again.
        """
        key = _key(who, offset)
        data = self._encoded(tensors, meta)
        stored = self._store.get(key)
        if stored is not None and stored.data != data:
            if _read(stored.data)[1].get("writer") not in {self.writer, former}:
                raise Superseded(f"{key} was written by another learner")
            try:
                self._store.put_if(key, data, stored.etag, "application/octet-stream")
            except Conflict:
                raise Superseded(f"{key} was written by another learner") from None
        elif stored is None and not self._store.put_new(key, data, "application/octet-stream"):
            raise Superseded(f"{key} was written by another learner")
        self.keep(who, 1)

    def keep(self, who: int | str, kept: int) -> None:
        """Delete all but the newest so many."""
        for old in sorted(self._store.list(_prefix(who)))[:-kept]:
            self._store.delete(old)

    def forgot(self, partition: int, marks: frozenset[str]) -> None:
        """Say that of these erased people, by their marks, this partition's checkpoints name none.

        Raises:
            StorageFault: try again.
        """
        self._store.update(f"{FORGOTTEN}{partition}", lambda _: orjson.dumps(sorted(marks)))

    def without(self, mark: str) -> bool:
        """Whether that has been said of this person for every partition that has a checkpoint.

        Raises:
            StorageFault: try again.
        """
        names = [key.removeprefix(ROOT).partition("/")[0] for key in self._store.list(ROOT)]
        said = [self._store.get(f"{FORGOTTEN}{name}") for name in set(names) if name.isdecimal()]
        return all(each is not None and mark in orjson.loads(each.data) for each in said)

    def _encoded(self, tensors: Tensors, meta: dict[str, Any]) -> bytes:
        return save(tensors, {"icg": orjson.dumps({**meta, "format": FORMAT, "writer": self.writer}).decode()})

    def newest(self, who: int | str) -> tuple[int, Tensors, dict[str, Any]] | None:
        """Offset and content of the newest checkpoint; one that cannot be read is passed over, and said."""
        for key in sorted(self._store.list(_prefix(who)), reverse=True):
            stored = self._store.get(key)
            if stored is None:
                continue
            try:
                tensors, meta = _read(stored.data)
            except BadState as error:
                log.error("%s: %s", key, error)
                continue
            return int(key.rpartition("/")[2]), tensors, meta
        return None


def _prefix(who: int | str) -> str:
    return f"{ROOT}{who}/"


def _key(who: int | str, offset: int) -> str:
    return f"{_prefix(who)}{offset:020d}"


def _read(data: bytes) -> tuple[Tensors, dict[str, Any]]:
    try:
        length = int.from_bytes(data[:8], "little")
        meta = orjson.loads(orjson.loads(data[8 : 8 + length])["__metadata__"]["icg"])
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadState(f"no checkpoint: {error}") from None
    if meta.get("format") != FORMAT:
        raise BadState(f"format {meta.get('format')}, {FORMAT} is read")
    return tensors, meta


# -- a learner -----------------------------------------------------------------------------------------------------


def of_learner(learner: Learner) -> tuple[Tensors, dict[str, Any]]:
    """All of a learner's state but the covers' embeddings, which are immutable in S3."""
    window, tastes = learner.window, learner.tastes
    held, known = window.end - window.base, len(tastes.names)
    tensors: Tensors = {f"window.{name}": column[:held] for name, column in window.columns.items()}
    tensors |= {f"open.{name}": column for name, column in window.open.items()}
    tensors |= {
        "window.waiting": window.waiting,
        "window.newest": window.newest[: len(window.items)],
        "names.users": _pack(window.users.listed),
        "names.items": _pack(window.items.listed),
        "names.covers": _pack(window.covers.listed),
        "tastes.names": _pack(tastes.names.listed),
        "tastes.base": tastes.base[:known],
        "tastes.residual": tastes.residual[:known],
        "tastes.pairs": tastes.pairs[:known],
        "tastes.asked": tastes.asked[:known],
        "tastes.touched": tastes.touched[:known],
        "tastes.hour": tastes.hour[:known],
        "tastes.answers": tastes.answers[:known],
        "erased.until": np.fromiter(learner.erased.until.values(), np.int64, len(learner.erased.until)),
        "erased.keys": np.frombuffer(b"".join(learner.erased.until), np.uint8),
    }
    tensors |= {f"outgoing.{name}": column for name, column in learner.outgoing.columns().items()}
    tensors |= {f"centres.{name}": array for name, array in learner.centres.arrays().items()}
    tensors |= {f"history.{name}": array for name, array in tastes.history.arrays().items()}
    tensors |= {f"queue.{name}": column for name, column in learner.queue.columns().items()}
    tensors |= {f"pending.{name}": column for name, column in learner.pending.columns().items()}
    meta = {
        "partition": learner.partition,
        "offset": learner.offset,
        "release": learner.release,
        "space": learner.head.space,
        "dimension": learner.head.dimension,
        "sequence": learner.sequence,
        "cut": [learner.cut_offset, learner.cut_time],
        "lost": [learner.other_space, learner.pending_dropped, learner.bad_tokens, learner.capped, learner.sampled],
        "budget": [learner.budget.left, learner.budget.time],
        "window": [window.watermark, window.mark, window.floor, window.end, window.base],
        "counts": window.counts.as_dict(),
        "dirty": [sorted(tastes.dirty), sorted(tastes.dirty_history)],
    }
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, meta


def to_learner(
    tensors: Tensors,
    meta: dict[str, Any],
    head: Head,
    *,
    horizon: int,
    most: int,
    shown: int,
    limits: Limits,
    rate: float,
) -> Learner:
    """The learner again. `head` is the one of the release that `meta` names.

    Raises:
        BadState: something is missing or does not fit.
    """
    try:
        if (meta["space"], meta["dimension"]) != (head.space, head.dimension):
            raise BadState("the head is of another space than the checkpoint")
        watermark, mark, floor, end, base = meta["window"]
        window = Window(
            horizon,
            most,
            shown,
            watermark=watermark,
            mark=mark,
            floor=floor,
            end=end,
            base=base,
            counts=Counts(**meta["counts"]),
            users=Names(_unpack(tensors["names.users"])),
            items=Names(_unpack(tensors["names.items"])),
            covers=Names(_unpack(tensors["names.covers"])),
            newest=tensors["window.newest"].copy(),
            waiting=tensors["window.waiting"].copy(),
            open={name: tensors[f"open.{name}"].copy() for name in OPEN},
        )
        window.restore({name: tensors[f"window.{name}"] for name in window.columns})
        tastes = Tastes(head.dimension, limits)
        tastes.restore(_unpack(tensors["tastes.names"]))
        for name in ("base", "residual", "pairs", "asked", "touched", "hour", "answers"):
            getattr(tastes, name)[: len(tastes.names)] = tensors[f"tastes.{name}"]
        tastes.history = History.restored({name: tensors[f"history.{name}"] for name in tastes.history.arrays()})
        tastes.dirty, tastes.dirty_history = (set(numbers) for numbers in meta["dirty"])
        other_space, pending_dropped, bad_tokens, capped, sampled = meta["lost"]
        learner = Learner(
            meta["partition"],
            head,
            meta["release"],
            window,
            tastes,
            Budget(rate, *meta["budget"]),
            offset=meta["offset"],
            sequence=meta["sequence"],
            cut_offset=meta["cut"][0],
            cut_time=meta["cut"][1],
            queue=_queue("queue", tensors),
            pending=_queue("pending", tensors),
            other_space=other_space,
            pending_dropped=pending_dropped,
            bad_tokens=bad_tokens,
            capped=capped,
            sampled=sampled,
        )
        learner.outgoing = _rows("outgoing", tensors)
        centres = {name: tensors[f"centres.{name}"] for name in ("mean", "count", "counted")}
        learner.centres = Centres.restored(head.dimension, centres)
        keys = tensors["erased.keys"].tobytes()
        until = tensors["erased.until"].tolist()
        learner.erased = Erased({keys[16 * k : 16 * k + 16]: until[k] for k in range(len(until))})
        return learner
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise BadState(f"a checkpoint that cannot be taken over: {error!r}") from None


def _rows(name: str, tensors: Tensors) -> Rows:
    return Rows(**{item.name: tensors[f"{name}.{item.name}"].copy() for item in fields(Rows)})


def _queue(name: str, tensors: Tensors) -> Queue:
    return Queue(**{item.name: tensors[f"{name}.{item.name}"].copy() for item in fields(Queue)})


def fingerprint(learner: Learner) -> str:
    """sha256 of all that decides what a learner will ever do, in a spelling that no batch size shows in."""
    window, tastes = learner.window, learner.tastes
    rows = np.arange(window.base, window.end)
    rows = rows[window.alive(rows)]
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        for value in values:
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else orjson.dumps(value))
            digest.update(b"\n")

    add(learner.offset, learner.sequence, learner.release, learner.head.space, window.watermark)
    add(window.counts.as_dict(), learner.other_space, learner.pending_dropped, learner.bad_tokens)
    add(learner.capped, learner.sampled, learner.budget.left, learner.budget.time)
    add(*learner.outgoing.take(slice(0, None)).columns().values())
    for name in ("key", "link", "time", "offset", "kind", "choice", "position"):
        add(window.columns[name][rows - window.base])
    add(window.columns["answered"][rows - window.base])
    for name, names in (("user", window.users), ("cover", window.covers)):
        add([names.listed[number] for number in window.columns[name][rows - window.base].tolist()])
    add(window.waiting[window.alive(window.waiting)] if len(window.waiting) else window.waiting)
    going = window.open
    add(*(window.columns["key"][going[name] - window.base] for name in ("row", "last")), going["kind"], going["steps"])
    for queue in (learner.queue, learner.pending):
        for people in (queue.winner, queue.loser):
            add([tastes.names.listed[number] for number in people.tolist()])
        for covers in (queue.chosen, queue.rejected):
            add([window.covers.listed[code & 0xFFFFFFFF] for code in covers.tolist()])
        add(queue.weight, queue.chosen_weight, queue.rejected_weight, queue.hash)
    for number in np.argsort(np.array(tastes.names.listed, object)).tolist():
        add(tastes.names.listed[number], tastes.base[number], tastes.residual[number], int(tastes.pairs[number]))
        add(int(tastes.touched[number]), int(tastes.hour[number]), int(tastes.answers[number]))
        add(learner.liked(number))
    return digest.hexdigest()


# -- the trainer ---------------------------------------------------------------------------------------------------

_KEPT = ("held", "replay")


def of_trainer(trainer: Trainer) -> tuple[Tensors, dict[str, Any]]:
    """All of the trainer's state."""
    tensors: Tensors = {}
    for name in ("start", "head", "average"):
        head: Head = getattr(trainer, name)
        tensors |= {f"{name}.weight": head.weight, f"{name}.bias": head.bias}
    for name in _KEPT:
        kept: Kept = getattr(trainer, name)
        tensors |= {f"{name}.{column}": array for column, array in kept.held().columns().items()}
        tensors[f"{name}.sources"] = kept.sources[: len(kept)]
    tensors |= {
        "interest": trainer.interest,
        "drift.now": trainer.drift.now,
        "drift.reference": trainer.drift.reference,
    }
    tensors["fresh"] = np.concatenate([np.zeros((0, 6)), *(scored.columns() for scored in trainer.fresh)])
    tensors["fresh.ends"] = np.cumsum([len(scored.weight) for scored in trainer.fresh], dtype=np.int64)
    meta = {
        "offset": trainer.offset,
        "space": trainer.head.space,
        "numbers": [trainer.steps, trainer.pairs, trainer.since, trainer.repeated, trainer.other_space],
        "seen": [[partition, sequence] for partition, sequence in sorted(trainer.seen.items())],
        "usual": trainer.usual,
        "kept": [trainer.held.total, trainer.replay.total],
    }
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, meta


def to_trainer(tensors: Tensors, meta: dict[str, Any]) -> Trainer:
    """The trainer again.

    Raises:
        BadState: something is missing or does not fit.
    """
    try:
        start, head, average = (
            Head(meta["space"], tensors[f"{name}.weight"], tensors[f"{name}.bias"])
            for name in ("start", "head", "average")
        )
        trainer = Trainer(start, head, average, offset=meta["offset"])
        trainer.steps, trainer.pairs, trainer.since, trainer.repeated, trainer.other_space = meta["numbers"]
        trainer.seen = dict(meta["seen"])
        trainer.usual = meta["usual"]
        for name, total in zip(_KEPT, meta["kept"], strict=True):
            kept: Kept = getattr(trainer, name)
            rows = _rows(name, tensors)
            kept.rows.put(np.arange(len(rows)), rows)
            kept.sources[: len(rows)] = tensors[f"{name}.sources"]
            kept.total, kept.size = total, len(rows)
        trainer.interest = tensors["interest"].copy()
        trainer.drift.now, trainer.drift.reference = tensors["drift.now"].copy(), tensors["drift.reference"].copy()
        parts = np.split(tensors["fresh"], tensors["fresh.ends"][:-1]) if len(tensors["fresh.ends"]) else []
        trainer.fresh = [Scored.of(part.copy()) for part in parts]
        return trainer
    except (KeyError, ValueError, TypeError) as error:
        raise BadState(f"a checkpoint that cannot be taken over: {error!r}") from None


def _pack(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(orjson.dumps(value), np.uint8)


def _unpack(tensor: NDArray[np.uint8]) -> Any:
    return orjson.loads(tensor.tobytes())
