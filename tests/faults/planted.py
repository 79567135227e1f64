"""Bugs, each planted in the processes of one run, to show that the checker counts them. Called after the fork."""

from __future__ import annotations

from typing import Any


def plant(bug: str) -> None:
    {
        "ack before manifest": _ack_before_manifest,
        "put without If-Match": _put_without_if_match,
        "retract ignored": _retract_ignored,
        "outage dead-lettered": _outage_dead_lettered,
        "commit before append": _commit_before_append,
        "append without transactions": _append_without_transactions,
        "state behind its offset": _state_behind_its_offset,
        "old rows answered": _old_rows_answered,
    }[bug]()


def _ack_before_manifest() -> None:
    from workers.covers.lane import Lane

    async def acked_first(self: Any, ticket: Any, message: Any) -> None:
        try:
            for ready in self._acks.finish(ticket):
                self._ack(ready)
            await self._worker.handle(message, self._kind)
        finally:
            self._slots.release()

    Lane._one = acked_first  # type: ignore[method-assign]


def _put_without_if_match() -> None:
    from workers.storage import ObjectStore

    def put(self: Any, key: str, data: bytes, etag: str | None, content_type: str = "application/json") -> str:
        answer = self._client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=content_type)
        return str(answer["ETag"])

    ObjectStore.put_if = put  # type: ignore[method-assign]


def _retract_ignored() -> None:
    from workers.covers import plan, worker
    from workers.events import ItemPublish, Outcome

    decide = plan.decide

    def ignoring(event: Any, *others: Any) -> Any:
        if isinstance(event, ItemPublish) and event.action == "retract":
            return plan.Keep(Outcome.UNCHANGED)
        return decide(event, *others)

    worker.decide = ignoring


def _outage_dead_lettered() -> None:
    from workers.covers.worker import Worker
    from workers.events import BadEvent
    from workers.exceptions import Fault

    async def impatient(self: Any, condition: str, what: str, call: Any, *arguments: Any) -> Any:
        import asyncio

        try:
            return await asyncio.to_thread(call, *arguments)
        except Fault as fault:
            raise BadEvent(str(fault)) from None

    init = Worker.__init__

    def with_impatience(self: Any, settings: Any, ports: Any, studio: Any, inflight: Any, *others: Any) -> None:
        init(self, settings, ports, studio, inflight, *others)
        patience = self._patience
        self._patience = lambda condition, what, call, *arguments: (
            impatient(self, condition, what, call, *arguments)
            if condition == "s3"
            else patience(condition, what, call, *arguments)
        )
        self._patience.pause = patience.pause

    Worker.__init__ = with_impatience  # type: ignore[method-assign]


def _commit_before_append() -> None:
    from workers.audit.service import Audit

    flush = Audit._flush

    def committed_first(self: Any, consumer: Any) -> None:
        self._uncommitted |= self._sink.take_offsets()
        self._commit(consumer)
        flush(self, consumer)

    Audit._flush = committed_first  # type: ignore[method-assign]


def _append_without_transactions() -> None:
    from workers.audit.delta import AuditTable
    from workers.audit.service import Audit

    AuditTable._known = staticmethod(lambda table, app: -1)  # type: ignore[method-assign,assignment]
    Audit._commit = lambda self, consumer: None  # type: ignore[method-assign]


def _state_behind_its_offset() -> None:
    from workers.preferences.checkpoint import Checkpoints

    newest = Checkpoints.newest

    def behind(self: Any, who: int | str) -> Any:
        found = newest(self, who)
        if found is None or who == "trainer":
            return found
        offset, tensors, meta = found
        offset = max(0, offset - 20)
        return offset, tensors, {**meta, "offset": offset}

    Checkpoints.newest = behind  # type: ignore[method-assign]


def _old_rows_answered() -> None:
    from workers.api import lookup

    fresh, first = lookup.row_from_feast, {}

    def as_it_was(item_id: str, row: dict[str, Any]) -> Any:
        found = fresh(item_id, row)
        kept, again = first.setdefault(item_id, (found, []))
        again.append(0)
        return kept if len(again) % 2 else found

    lookup.row_from_feast = as_it_was
