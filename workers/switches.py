"""Off switches: a cover that must not be shown, and personalisation as a whole. They act in the api within 10 seconds.

They live in one record, `switches.json` in S3, changed by compare-and-swap and read by every api every 3 seconds. What
was switched is never forgotten: a lifted block stays in the record, and each use leaves a line of who, when and why.
"""

from __future__ import annotations

import logging
import os
import pwd
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from workers.events import Digest
from workers.exceptions import StorageFault, UserError
from workers.polling import Poller
from workers.records import SWITCHES_KEY, Block, Switches

if TYPE_CHECKING:
    from workers.storage import ObjectStore

log = logging.getLogger(__name__)

POLL_SECONDS = 3.0
MOST_LINES = 1000
"""Of the log inside the record; blocks themselves are kept for ever."""

Change = Callable[[Switches], Switches]


def block(cover_id: str, reason: str, by: str, now: datetime) -> Change:
    """Never show this cover."""

    def change(switches: Switches) -> Switches:
        if cover_id in blocked(switches):
            raise UserError(f"cover {cover_id} is blocked already")
        entry = Block(cover_id=cover_id, reason=reason, by=by, time=now)
        return _logged(
            switches.model_copy(update={"blocks": [*switches.blocks, entry]}), by, now, f"block {cover_id}", reason
        )

    return change


def unblock(cover_id: str, reason: str, by: str, now: datetime) -> Change:
    """Show it again."""

    def change(switches: Switches) -> Switches:
        if cover_id not in blocked(switches):
            raise UserError(f"cover {cover_id} is not blocked")
        blocks = [
            entry.model_copy(update={"lifted": now}) if entry.cover_id == cover_id and entry.lifted is None else entry
            for entry in switches.blocks
        ]
        return _logged(switches.model_copy(update={"blocks": blocks}), by, now, f"unblock {cover_id}", reason)

    return change


def personalize(on: bool, reason: str, by: str, now: datetime) -> Change:
    """Personal covers, or the neutral one for everybody."""

    def change(switches: Switches) -> Switches:
        what = f"personalization {'on' if on else 'off'}"
        if switches.personalization is on:
            raise UserError(f"{what}: so it is already")
        return _logged(switches.model_copy(update={"personalization": on}), by, now, what, reason)

    return change


def blocked(switches: Switches) -> frozenset[str]:
    return frozenset(entry.cover_id for entry in switches.blocks if entry.lifted is None)


def apply(store: ObjectStore, change: Change) -> Switches:
    """Change the record, whoever else changes it at the same moment.

    Raises:
        UserError: what the change says, if there is nothing to change.
        StorageFault: S3 is away.
    """
    after = Switches()

    def update(data: bytes | None) -> bytes:
        nonlocal after
        after = change(Switches.decode(data) if data is not None else Switches())
        return after.encode()

    store.update(SWITCHES_KEY, update)
    return after


def _logged(switches: Switches, by: str, now: datetime, what: str, reason: str) -> Switches:
    line = " ".join(f"{now.isoformat(timespec='seconds')} {by}: {what}{f' ({reason})' if reason else ''}".split())
    return switches.model_copy(update={"log": [*switches.log, line][-MOST_LINES:]})


@dataclass(frozen=True, slots=True)
class SwitchState:
    """What the api asks on every request."""

    personalization: bool = True
    blocked: frozenset[str] = frozenset()


class SwitchWatcher(Poller):
    """Reads the switches every 3 seconds and keeps the last known ones while S3 is away.

    Args:
        store: with a timeout of seconds, or a store that hangs delays what is switched when it is back.
        on_read: told after each try: did S3 answer?
    """

    def __init__(
        self, store: ObjectStore, seconds: float = POLL_SECONDS, on_read: Callable[[bool], None] = lambda ok: None
    ) -> None:
        self.state = SwitchState()
        self.known = threading.Event()
        """Set once the switches were read: before that, a blocked cover would be shown."""
        self._store, self._on_read = store, on_read
        self._read_at = time.monotonic()
        super().__init__("switches", self.poll, seconds)

    @property
    def age(self) -> float:
        """Seconds since the switches were last read."""
        return time.monotonic() - self._read_at

    def poll(self) -> bool:
        """Read once. False when S3 is away or the record is damaged: the last known switches hold."""
        try:
            stored = self._store.get(SWITCHES_KEY)
            switches = Switches.decode(stored.data) if stored is not None else Switches()
        except (StorageFault, ValidationError) as error:
            log.warning("the switches cannot be read, the last known ones hold: %s", error)
            self._on_read(False)
            return False
        state = SwitchState(switches.personalization, blocked(switches))
        if state != self.state:
            log.info("switches: personalization %s, %d blocked", state.personalization, len(state.blocked))
        self.state, self._read_at = state, time.monotonic()
        self.known.set()
        self._on_read(True)
        return True


# --- icg covers ------------------------------------------------------------------------------------------------------

app = typer.Typer(help="Off switches, in effect everywhere within 10 seconds.", no_args_is_help=True)

_COVER = TypeAdapter(Digest)


class OnOff(StrEnum):
    ON = "on"
    OFF = "off"


CoverId = Annotated[str, typer.Argument(help="64 hexadecimal digits, as answers and the gallery show them.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the record.")]
By = Annotated[str, typer.Option("--by", help="Who; the system's user if not given.")]


@app.command("block")
def block_command(cover_id: CoverId, reason: Reason, by: By = "") -> None:
    """Never show this cover again: readers get the next one on the chain."""
    if not reason.strip():
        raise UserError("--reason: say why, it is kept in the record")
    _apply_here(block(_cover(cover_id), reason, by or _who(), datetime.now(UTC)))
    typer.echo(f"blocked {cover_id}, within 10 seconds everywhere")


@app.command("unblock")
def unblock_command(cover_id: CoverId, reason: Reason = "", by: By = "") -> None:
    """Lift a block."""
    _apply_here(unblock(_cover(cover_id), reason, by or _who(), datetime.now(UTC)))
    typer.echo(f"unblocked {cover_id}, within 10 seconds everywhere")


@app.command("personalization")
def personalization_command(state: OnOff, reason: Reason = "", by: By = "") -> None:
    """`off` shows everybody the neutral cover, `on` personal ones again."""
    _apply_here(personalize(state is OnOff.ON, reason, by or _who(), datetime.now(UTC)))
    typer.echo(f"personalization {state.value}, within 10 seconds everywhere")


@app.command("switches")
def switches_command() -> None:
    """What is off, and who switched what, when and why."""
    from workers.settings import settings
    from workers.storage import ObjectStore

    stored = ObjectStore(settings().s3).get(SWITCHES_KEY)
    switches = Switches.decode(stored.data) if stored is not None else Switches()
    typer.echo(f"personalization {'on' if switches.personalization else 'off'}")
    for entry in switches.blocks:
        if entry.lifted is None:
            typer.echo(f"blocked {entry.cover_id} by {entry.by}: {entry.reason}")
    for line in switches.log:
        typer.echo(f"  {line}")


def _apply_here(change: Change) -> None:
    from workers.settings import settings
    from workers.storage import ObjectStore

    apply(ObjectStore(settings().s3), change)


def _cover(cover_id: str) -> str:
    try:
        return _COVER.validate_python(cover_id)
    except ValidationError:
        raise UserError(f"{cover_id!r} is no cover id: 64 hexadecimal digits") from None


def _who() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
