"""The trainer as a thread: whoever holds partition 0 of `preference-pairs` in the group `preference-trainer`."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from icg.preference import Head
from workers.events import BadEvent, PreferencePairs
from workers.exceptions import BadPart, Fault
from workers.messaging import Consumer, Message, Producer
from workers.preferences import metrics, pairs
from workers.preferences.checkpoint import TRAINER, Checkpoints, of_trainer, to_trainer
from workers.preferences.judging import Margins, Verdict
from workers.preferences.outbox import Outbox
from workers.preferences.partitions import commit
from workers.preferences.trainer import Trainer
from workers.releases import Releases
from workers.settings import Settings
from workers.storage import retrying

log = logging.getLogger(__name__)

GROUP = "preference-trainer"
TOPIC = PreferencePairs.topic
CHECKPOINT_MESSAGES = 64


class Training(threading.Thread):
    """Trains, judges and releases. Ends when told to, or with `failed` set."""

    def __init__(
        self,
        settings: Settings,
        checkpoints: Checkpoints,
        releases: Releases,
        producer: Producer,
        released: Callable[[], tuple[int, Head]],
        stop: threading.Event,
        on_retry: Callable[[Fault], None] | None = None,
    ) -> None:
        """
        Args:
            released: the newest release's number and head.
        """
        super().__init__(name="trainer", daemon=True)
        self._settings, self._checkpoints, self._releases = settings, checkpoints, releases
        self._producer, self._released = producer, released
        self._stop_event, self._on_retry = stop, on_retry
        self._outbox = Outbox(stop, on_retry)
        self._trainer: Trainer | None = None
        self._written = -1
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            consumer = Consumer(
                self._settings.kafka,
                GROUP,
                [TOPIC],
                on_assign=lambda owned: self._assign(consumer, owned),
                on_revoke=self._revoke,
                on_lost=self._drop,
            )
            try:
                while not self._stop_event.is_set():
                    self._turn(consumer)
            finally:
                consumer.close()
        except BaseException as error:
            self.failed = error
            self._stop_event.set()

    def _turn(self, consumer: Consumer) -> None:
        records = retrying(
            lambda: consumer.poll_raw(256, 0.5), what="read pairs", stop=self._stop_event, on_retry=self._on_retry
        )
        for record in records:
            if record.partition() == 0 and self._trainer is not None:
                self._take(record)
        if records and self._trainer is not None and self._written >= 0:
            commit(consumer, {(TOPIC, 0): self._written})

    # -- ownership ---------------------------------------------------------------------------------------------------

    def _assign(self, consumer: Consumer, owned: set[tuple[str, int]]) -> None:
        if (TOPIC, 0) not in owned or self._trainer is not None:
            return
        found = self._retrying(lambda: self._checkpoints.newest(TRAINER), "read checkpoint")
        if found is None:
            self._trainer, self._written = Trainer.of(self._released()[1]), -1
            self._write()
            log.info("the trainer begins")
            return
        offset, tensors, meta = found
        self._trainer, self._written = to_trainer(tensors, meta), offset
        if offset > 0:
            consumer.seek(TOPIC, 0, offset)
        log.info("the trainer goes on at offset %d after %d pairs", offset, self._trainer.pairs)

    def _revoke(self, gone: set[tuple[str, int]]) -> None:
        if (TOPIC, 0) in gone and self._trainer is not None:
            self._write()
            self._trainer = None

    def _drop(self, lost: set[tuple[str, int]]) -> None:
        """Somebody else may train already, from the last checkpoint on."""
        if (TOPIC, 0) in lost and self._trainer is not None:
            log.warning("the trainer's partition is lost, what it learned since its checkpoint is left to another")
            self._trainer = None

    # -- training ----------------------------------------------------------------------------------------------------

    def _take(self, record: Any) -> None:
        trainer = self._trainer
        assert trainer is not None
        if record.offset() < trainer.offset:
            return
        number, head = self._released()
        if head.space != trainer.head.space:
            log.warning("release %d has another space: the trainer begins again", number)
            fresh = Trainer.of(head)
            fresh.offset, fresh.seen = trainer.offset, trainer.seen
            self._trainer = trainer = fresh
        before = trainer.pairs
        forgotten = False
        try:
            message_pairs = pairs.decode(record.value())
            forgotten = trainer.take(message_pairs, head) and bool(message_pairs.forget)
        except BadEvent as error:
            message, reason = Message.of(record), str(error)
            self._outbox.send(lambda: self._producer.dead_letter(message, reason))
        trainer.offset = record.offset() + 1
        metrics.TRAINED.inc(trainer.pairs - before)
        judged = trainer.since >= self._settings.preferences.release_pairs
        if judged:
            self._judge(trainer, number, head)
        if judged or forgotten or trainer.offset % CHECKPOINT_MESSAGES == 0:
            self._write()
        if forgotten:  # nor may a former checkpoint remember them
            self._retrying(lambda: self._checkpoints.keep(TRAINER, 1), "forget checkpoints")

    def _judge(self, trainer: Trainer, number: int, head: Head) -> None:
        settings = self._settings.preferences
        margins = Margins(settings.release_margin, settings.order_margin, settings.calibration_margin)
        verdict = trainer.judge(head, margins)
        metrics.LOSS.labels("released").set(verdict.loss.before)
        metrics.LOSS.labels("candidate").set(verdict.loss.after)
        for what, drift in zip(("population", "score"), trainer.drift.turn(), strict=True):
            metrics.DRIFT.labels(what).set(drift)
        if not verdict.accepted:
            metrics.RELEASES.labels("refused").inc()
            log.warning("candidate after %d pairs refused against release %d: %s", trainer.pairs, number, verdict)
            return
        try:
            self._retrying(lambda: release(self._releases, trainer.average, verdict), "release")
        except BadPart as error:
            metrics.RELEASES.labels("refused").inc()
            log.error("candidate after %d pairs refused: %s", trainer.pairs, error)
            return
        metrics.RELEASES.labels("accepted").inc()

    def _write(self) -> None:
        trainer = self._trainer
        assert trainer is not None
        if trainer.offset == self._written:
            return
        self._outbox.settle()
        tensors, meta = of_trainer(trainer)
        self._retrying(lambda: self._checkpoints.write(TRAINER, trainer.offset, tensors, meta), "write checkpoint")
        self._written = trainer.offset
        metrics.CHECKPOINTS.inc()

    def _retrying(self, call: Callable[[], Any], what: str) -> Any:
        return retrying(call, what=what, stop=self._stop_event, on_retry=self._on_retry)


def release(releases: Releases, head: Head, verdict: Verdict) -> None:
    """Store a head as a part and release it. Done already: nothing happens.

    Raises:
        BadPart: the release in force has another space.
    """
    current = releases.current()
    parents = {"preference": current.parts["preference"]} if current and "preference" in current.parts else {}
    with tempfile.TemporaryDirectory() as folder:
        head.save(folder)
        revision = releases.put_part(
            "preference",
            {path.name: path for path in sorted(Path(folder).iterdir())},
            space=head.space,
            made_by="preferences",
            parents=parents,
            metrics=verdict.metrics(),
            notes=f"{verdict} after {verdict.pairs} pairs",
        )
    if current is not None and current.parts.get("preference") == revision:
        return
    releases.publish({"preference": revision}, f"learned from {verdict.pairs} pairs: {verdict}"[:500], "preference")
