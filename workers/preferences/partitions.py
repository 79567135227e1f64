"""The partitions of `user-behavior` that this process owns: resume, learn, write down, give up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np

from icg.preference import Head
from workers.erased import Erased
from workers.events import PreferencePairs, UserBehavior
from workers.exceptions import Fault, MessagingFault
from workers.messaging import Consumer, Message, Producer
from workers.preferences import metrics, pairs
from workers.preferences.checkpoint import Checkpoints, Tensors, of_learner, to_learner
from workers.preferences.decode import Bad, Columns, decode
from workers.preferences.learner import Learner, Sources
from workers.preferences.outbox import Outbox
from workers.preferences.propensity import Tokens, Weights
from workers.preferences.push import Pusher, Row
from workers.preferences.sample import Budget
from workers.preferences.tastes import HOUR, Limits, Tastes
from workers.preferences.window import Window
from workers.settings import Preferences
from workers.storage import retrying

log = logging.getLogger(__name__)

TOPIC = UserBehavior.topic
LOOK, LOOK_MOST = 2.0, 60.0
"""Seconds between two looks for missing sidecars; twice as long after each that found none."""
SETTLE_SECONDS = 2.0
"""That giving partitions up waits for Feast; what is not there by then is the next owner's to push."""
MOST_CLEARED = 500_000
"""Users remembered as not erased, while anybody is."""


@dataclass
class Owned:
    """A partition in our hands."""

    learner: Learner
    written: int  # offset of the last checkpoint
    look: float = 0.0  # when to look for missing sidecars again, by the process' clock
    wait: float = LOOK  # and how long to wait after that
    writer: str = ""  # of the checkpoint that it was read from
    marks: frozenset[str] = frozenset()  # of the erased people who were looked for in it


class Partitions:
    """Learners by partition, and their way to Kafka, S3 and Feast. For one thread, the consumer's."""

    def __init__(
        self,
        settings: Preferences,
        retention_days: float,
        decision_keys: tuple[bytes, ...],
        checkpoints: Checkpoints,
        sources: Sources,
        producer: Producer,
        pusher: Pusher,
        head_of: Callable[[int], Head],
        erased: Erased,
        stop: threading.Event,
        on_retry: Callable[[Fault], None] | None = None,
    ) -> None:
        """
        Args:
            retention_days: for how long the events of erased people are dropped.
            head_of: the head of a release by its number.
        """
        self._settings, self._tokens, self._retention_days = settings, Tokens(decision_keys), retention_days
        self._checkpoints, self._sources = checkpoints, sources
        self._producer, self._pusher = producer, pusher
        self._head_of, self._stop, self._on_retry = head_of, stop, on_retry
        self._erased = erased
        self._cleared: set[str] = set()  # users who are not among the erased
        self._cleared_of: frozenset[str] = frozenset()
        self._outbox = Outbox(stop, on_retry)
        self._owned: dict[int, Owned] = {}
        self.release: tuple[int, Head] | None = None
        """The newest release's number and head: what new partitions begin with and old ones adopt."""

    # -- ownership ---------------------------------------------------------------------------------------------------

    def assign(self, consumer: Consumer, partitions: Sequence[int]) -> None:
        """Take over these as well: from the newest checkpoint, or from nothing."""
        for partition in partitions:
            if partition in self._owned:
                continue
            found = self._retrying(partial(self._checkpoints.newest, partition), "read checkpoint")
            if found is None:
                self._owned[partition] = Owned(self._fresh(partition), -1)
                self._write(self._owned[partition])
                log.info("partition %d: begins", partition)
                continue
            offset, tensors, meta = found
            head = self._retrying(partial(self._head_of, meta["release"]), "read the checkpoint's release")
            learner = to_learner(tensors, meta, head, **self._limits())
            learner.resume(self._sources)
            self._owned[partition] = Owned(learner, offset, writer=meta["writer"])
            if offset > 0:
                consumer.seek(TOPIC, partition, offset)
            log.info("partition %d: goes on at offset %d under release %d", partition, offset, learner.release)

    def revoke(self, partitions: Sequence[int]) -> dict[int, int]:
        """Push, write down and drop; the offsets that may be committed."""
        gone = [self._owned.pop(partition) for partition in partitions if partition in self._owned]
        for owned in gone:
            self.push(owned)
        self._pusher.settle(SETTLE_SECONDS)
        for owned in gone:
            self._write(owned)  # with the people who are not in Feast yet: the next owner's to push
            self._pusher.drop(owned.learner.tastes.names)
        return {owned.learner.partition: owned.written for owned in gone}

    def drop(self, partitions: Sequence[int]) -> None:
        """Forget what somebody else may own already: what we know of it might be older than what is theirs."""
        for partition in partitions:
            owned = self._owned.pop(partition, None)
            if owned is not None:
                self._pusher.drop(owned.learner.tastes.names)
                log.warning("partition %d is lost; its next owner goes on from the last checkpoint", partition)

    def _fresh(self, partition: int) -> Learner:
        assert self.release is not None
        number, head = self.release
        limits = self._limits()
        window = Window(limits["horizon"], limits["most"], limits["shown"])
        tastes = Tastes(head.dimension, limits["limits"])
        return Learner(partition, head, number, window, tastes, Budget(limits["rate"]))

    def _limits(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "horizon": int(settings.join_seconds * 1e6),
            "most": settings.window_events,
            "shown": settings.impressions_per_window,
            "limits": Limits(
                settings.holdout, settings.residual_norm, settings.pairs_per_hour, int(settings.taste_days * 24 * HOUR)
            ),
            "rate": settings.pairs_per_second,
        }

    # -- events ------------------------------------------------------------------------------------------------------

    def take(self, partition: int, records: Sequence[Any]) -> None:
        """Raw messages of one partition, in order. Checkpoints are written where they are due."""
        owned = self._owned[partition]
        learner = owned.learner
        records = [record for record in records if record.offset() >= learner.offset]
        if not records:
            return
        before = metrics.outcomes(learner)
        batch, bad = decode(records)
        for each in bad:
            self._dead_letter(records[each.index], each)
        self._guard(learner, batch)
        weights = self._tokens.weights(batch)
        bad_offsets = np.array([records[each.index].offset() for each in bad], np.int64)
        start = 0
        microseconds = int(self._settings.checkpoint_seconds * 1e6)
        while True:
            rest = batch.span(start, len(batch))
            row = learner.cut(rest, self._settings.checkpoint_events, microseconds)
            if row is None:
                break
            until = int(rest.offset[row])
            self._learn(learner, rest.span(0, row), weights.span(start, start + row), bad_offsets, until)
            self._write(owned)
            start += row
        self._learn(learner, rest, weights.span(start, len(batch)), bad_offsets, records[-1].offset() + 1)
        metrics.note(learner, len(records), before)

    def _learn(self, learner: Learner, batch: Columns, weights: Weights, bad: Any, until: int) -> None:
        """Everything before `until`."""
        learner.window.counts.bad += int(np.count_nonzero((bad >= learner.offset) & (bad < until)))
        for made in learner.take(batch, weights, self._sources):
            self._send_pairs(made, learner.window.watermark)
        learner.skip(until)

    def _send_pairs(self, made: pairs.Pairs, watermark: int) -> None:
        said = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=watermark)).isoformat()
        value = pairs.encode(made, said)
        # As `events.headers_for`, without building the event: the same id for the same pairs, whoever sends them.
        headers = {
            "ce_specversion": b"1.0",
            "ce_id": f"{made.partition}-{made.sequence}".encode(),
            "ce_source": b"/icg/preferences",
            "ce_type": f"icg.{PreferencePairs.topic}.v1".encode(),
            "ce_time": said.encode(),
            "content-type": b"application/json",
        }
        self._outbox.send(lambda: self._producer.send(PreferencePairs.topic, value, None, headers, 0))

    def _dead_letter(self, record: Any, bad: Bad) -> None:
        message = Message.of(record)

        def send() -> Future[tuple[int, int]]:
            return self._producer.dead_letter(message, bad.reason, message.attempt)

        self._outbox.send(send)

    # -- people who are erased ---------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Look for erased people in what we own; afterwards no checkpoint remembers them, and we say so."""
        marks = self._erased.marks
        for owned in self._owned.values():
            if owned.marks == marks:
                continue
            learner = owned.learner
            known = {*learner.window.users.listed, *learner.tastes.names.listed} - {""}
            found = [user for user in known if self._erased.has(user)]
            for user in found:
                for made in learner.erase(user, self._dropped_until()):
                    self._send_pairs(made, learner.window.watermark)
                self._pusher.drop({user})
            # A checkpoint may know somebody whom the window has let go since.
            if found or learner.offset > owned.written:
                self._rewrite(owned)
            else:
                self._retrying(partial(self._checkpoints.keep, learner.partition, 1), "delete old checkpoints")
            self._retrying(partial(self._checkpoints.forgot, learner.partition, marks), "say who is forgotten")
            if found:
                log.info("partition %d: %d people are forgotten", learner.partition, len(found))
            owned.marks = marks

    def _guard(self, learner: Learner, batch: Columns) -> None:
        """Let the learner drop the events of erased people, those included whom it has never seen."""
        if not self._erased:
            return
        if self._cleared_of != self._erased.marks or len(self._cleared) > MOST_CLEARED:
            self._cleared, self._cleared_of = set(), self._erased.marks
        for user in set(batch.user) - self._cleared:
            if self._erased.has(user):
                learner.erased.add(user, self._dropped_until())
            else:
                self._cleared.add(user)

    def _dropped_until(self) -> int:
        return int((time.time() + self._retention_days * 86_400) * 1e6)

    # -- now and then ------------------------------------------------------------------------------------------------

    def tend(self) -> None:
        """A new release is adopted, late sidecars are looked for: each is written down before anything else happens.

        Not before the partition has moved on since its last checkpoint: there is one for an offset.
        """
        for owned in self._owned.values():
            learner = owned.learner
            if learner.offset <= owned.written:
                continue
            changed = False
            if self.release is not None and self.release[0] > learner.release:
                number, head = self.release
                learner.adopt(head, number)
                changed = True
            if len(learner.pending) and time.monotonic() >= owned.look:
                came = learner.retry(self._sources)
                changed = changed or came > 0
                owned.wait = LOOK if came else min(LOOK_MOST, 2 * owned.wait)
                owned.look = time.monotonic() + owned.wait
            if changed:
                self._write(owned)

    def push_all(self) -> None:
        """Offer what has changed to the pusher."""
        for owned in self._owned.values():
            self.push(owned)

    def push(self, owned: Owned) -> None:
        tastes, space = owned.learner.tastes, owned.learner.head.space
        listed = tastes.names.listed
        taste: dict[str, Row] = {
            listed[number]: {
                "residual": tastes.residual[number].copy(),
                "space": space,
                "pairs": int(tastes.pairs[number]),
            }
            for number in tastes.dirty
        }
        history: dict[str, Row] = {}
        for number in tastes.dirty_history:
            liked = owned.learner.liked(number)
            history[listed[number]] = {
                "liked_items": [item for item, _ in liked],
                "liked_covers": [cover for _, cover in liked],
            }
        tastes.dirty.clear()
        tastes.dirty_history.clear()
        self._pusher.offer("user_taste", taste)
        self._pusher.offer("user_history", history)

    def offsets(self) -> dict[tuple[str, int], int]:
        """What may be committed, as a display of the lag."""
        return {(TOPIC, number): owned.written for number, owned in self._owned.items() if owned.written >= 0}

    def moved(self, records: int) -> bool:
        """Whether there is anything since the last checkpoint of any partition."""
        return any(owned.learner.offset > owned.written + records for owned in self._owned.values())

    # -- writing down ------------------------------------------------------------------------------------------------

    def _write(self, owned: Owned) -> None:
        learner = owned.learner
        if learner.offset == owned.written:
            return
        tensors, meta = self._state(owned)
        self._retrying(
            lambda: self._checkpoints.write(learner.partition, learner.offset, tensors, meta), "write checkpoint"
        )
        owned.written = learner.offset
        metrics.CHECKPOINTS.inc()

    def _rewrite(self, owned: Owned) -> None:
        learner = owned.learner
        tensors, meta = self._state(owned)
        self._retrying(
            lambda: self._checkpoints.rewrite(learner.partition, learner.offset, tensors, meta, owned.writer),
            "write checkpoint",
        )
        owned.written = learner.offset
        metrics.CHECKPOINTS.inc()

    def _state(self, owned: Owned) -> tuple[Tensors, dict[str, Any]]:
        """What to write down, once everything that was sent has arrived."""
        self._outbox.settle()
        owned.learner.erased.expire(owned.learner.window.watermark)
        tensors, meta = of_learner(owned.learner)
        meta["dirty"] = self._not_pushed(owned.learner)
        return tensors, meta

    def _not_pushed(self, learner: Learner) -> list[list[int]]:
        tastes = learner.tastes
        found = []
        for view, dirty in (("user_taste", tastes.dirty), ("user_history", tastes.dirty_history)):
            waiting = {tastes.names[user] for user in self._pusher.waiting(view) if user in tastes.names}
            found.append(sorted(dirty | waiting))
        return found

    def _retrying(self, call: Callable[[], Any], what: str) -> Any:
        return retrying(call, what=what, stop=self._stop, on_retry=self._on_retry)


def commit(consumer: Consumer, offsets: dict[tuple[str, int], int]) -> None:
    """For whoever watches the group's lag. Nothing of ours reads it back, so a failure is only said."""
    try:
        consumer.commit(offsets)
    except MessagingFault as fault:
        log.warning("%s", fault)
