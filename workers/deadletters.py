"""`icg dlq`: look at dead letters, and send them again once their cause is mended."""

from __future__ import annotations

import heapq
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.events import DEAD_LETTERS
from workers.exceptions import MessagingFault, UserError

if TYPE_CHECKING:
    from workers.messaging import Message
    from workers.settings import Settings

app = typer.Typer()

MOST_ATTEMPTS = 5
"""A letter that came back so often is not sent again unless it is named by its offset."""


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True)
class DeadLetter:
    """One message of `dead-letters`: where it lies, and what its headers say.

    `topic`, `partition`, `offset` are of the message that was refused, `at` is `partition:offset` in `dead-letters`.
    `origin` names the message that the first attempt was: a replayed one that is refused again keeps it.
    """

    message: Message
    reason: str
    topic: str
    partition: int | None
    offset: int | None
    service: str
    attempt: int
    origin: str
    truncated: bool

    @classmethod
    def of(cls, message: Message) -> DeadLetter:
        def text(name: str) -> str:
            return message.headers.get(name, b"").decode(errors="replace")

        def number(name: str) -> int | None:
            return int(text(name)) if text(name).isascii() and text(name).isdigit() else None

        return cls(
            message=message,
            reason=text("dlq_reason") or "no reason was given",
            topic=text("dlq_topic"),
            partition=number("dlq_partition"),
            offset=number("dlq_offset"),
            service=text("dlq_service"),
            attempt=number("dlq_attempt") or 1,
            origin=text("dlq_origin") or ":".join(map(text, ("dlq_topic", "dlq_partition", "dlq_offset"))),
            truncated="dlq_truncated" in message.headers or "dlq_headers_dropped" in message.headers,
        )

    @property
    def at(self) -> str:
        return f"{self.message.partition}:{self.message.offset}"

    def as_record(self) -> dict[str, Any]:
        value = self.message.value
        return {
            "at": self.at,
            "time_ms": self.message.timestamp_ms,
            "reason": self.reason,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "service": self.service,
            "attempt": self.attempt,
            "key": self.message.key.decode(errors="replace") if self.message.key else None,
            "bytes": len(value or b""),
            "value": value[:500].decode(errors="replace") if value else None,
        }


@dataclass(frozen=True)
class Filter:
    """Which letters: all of what is given must hold."""

    topic: str | None = None
    reason: str | None = None
    at: frozenset[str] = frozenset()

    def __call__(self, letter: DeadLetter) -> bool:
        return (
            (self.topic is None or letter.topic == self.topic)
            and (self.reason is None or self.reason.lower() in letter.reason.lower())
            and (not self.at or letter.at in self.at)
        )


def _filter(topic: str | None, reason: str | None, offset: list[str] | None) -> Filter:
    wrong = [each for each in offset or () if not _is_at(each)]
    if wrong:
        raise UserError(
            f"{wrong[0]!r} is no place of a dead letter: partition:offset as `icg dlq list` prints it, like 0:17"
        )
    return Filter(topic, reason, frozenset(offset or ()))


def _is_at(text: str) -> bool:
    partition, _, offset = text.partition(":")
    return text.isascii() and partition.isdigit() and offset.isdigit()


Topic = Annotated[str | None, typer.Option(help="Only letters that came from this topic.")]
Reason = Annotated[str | None, typer.Option(help="Only letters whose reason contains this.")]
Offset = Annotated[list[str] | None, typer.Option(help="Only this letter, partition:offset; may be repeated.")]


@app.command("list")
def list_command(
    topic: Topic = None,
    reason: Reason = None,
    offset: Offset = None,
    last: Annotated[int, typer.Option(min=1, help="How many, the newest.")] = 50,
    form: Annotated[Format, typer.Option("--format", "-f")] = Format.TABLE,
) -> None:
    """Dead letters, oldest first: where each lies, why, and where it came from."""
    from rich.console import Console
    from rich.table import Table

    from workers.settings import settings

    wanted = _filter(topic, reason, offset)
    count = 0

    def counted() -> Iterator[DeadLetter]:
        nonlocal count
        for letter in filter(wanted, letters(settings())):
            count += 1
            yield letter

    # Only the newest are held: a letter may be a megabyte large.
    found = heapq.nlargest(last, counted(), key=lambda letter: letter.message.timestamp_ms)[::-1]
    if form is Format.JSON:
        typer.echo(json.dumps([letter.as_record() for letter in found], indent=2, ensure_ascii=False))
        return
    names = ("at", "when", "from", "key", "by", "try", "reason")
    rows = [_cells(letter) for letter in found]
    if not rows:
        typer.echo("no dead letters")
    elif sys.stdout.isatty():
        table = Table(*names)
        for row in rows:
            table.add_row(*row)
        Console(markup=False, emoji=False).print(table)
    else:  # a line a letter, for grep and cut; a table would be folded to 80 columns
        for row in [names, *rows]:
            typer.echo("\t".join(" ".join(cell.split()) for cell in row))
    if count > last:
        typer.echo(f"and {count - last} older ones; --last {count} shows all")


def _cells(letter: DeadLetter) -> tuple[str, ...]:
    key = letter.message.key.decode(errors="replace")[:40] if letter.message.key else ""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(max(0, letter.message.timestamp_ms) / 1000))
    source = f"{letter.topic} {letter.partition}:{letter.offset}"
    return letter.at, when, source, key, letter.service, str(letter.attempt), letter.reason


@app.command()
def replay(
    topic: Topic = None,
    reason: Reason = None,
    offset: Offset = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them, where nothing else chooses.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the broker.")] = 60.0,
) -> None:
    """Send dead letters to their original topic again: same bytes, same key, same headers, one attempt more."""
    from workers.settings import settings

    if not (topic or reason or offset or everything):
        raise UserError("say which: --topic, --reason, --offset, or --all")
    sent, left = send_again(settings(), _filter(topic, reason, offset), timeout, dry_run)
    verb = "would be sent" if dry_run else "sent"
    typer.echo(f"{sent} dead letter{'' if sent == 1 else 's'} {verb} again")
    for why, count in left.items():
        typer.echo(f"{count} left: {why}", err=True)


def letters(config: Settings, timeout: float = 60.0) -> Iterator[DeadLetter]:
    """Every dead letter that the broker has at this moment.

    Raises:
        MessagingFault: no broker, or it stopped answering.
    """
    from workers.messaging import Follower, wait_for_broker

    wait_for_broker(config.kafka, 10.0)
    follower = Follower(config.kafka, DEAD_LETTERS)
    try:
        quiet_since = time.monotonic()
        while not follower.caught_up():
            for message in follower.poll(1_000, 0.5):
                quiet_since = time.monotonic()
                yield DeadLetter.of(message)
            if time.monotonic() - quiet_since > timeout:
                raise MessagingFault(f"{DEAD_LETTERS}: the broker has messages but sends none for {timeout:g} s")
    finally:
        follower.close()


def send_again(
    config: Settings, wanted: Filter, timeout: float = 60.0, dry_run: bool = False
) -> tuple[int, dict[str, int]]:
    """Replay the letters that match.

    One letter is sent for each original message, the last one: an event that was refused twice is there twice. An event
    that was replayed before and went through is processed once more, which every reader of ours allows.

    Returns:
        How many were sent, and how many were left, by reason.
    """
    from workers.messaging import Producer
    from workers.topics import TOPICS

    newest: dict[str, DeadLetter] = {}
    left: dict[str, int] = {}
    for letter in letters(config, timeout):
        if wanted(letter):
            before = newest.get(letter.origin)
            if before is None or before.attempt <= letter.attempt:
                newest[letter.origin] = letter
    chosen = []
    for letter in newest.values():
        why = _unfit(letter, TOPICS, named=letter.at in wanted.at)
        if why:
            left[why] = left.get(why, 0) + 1
        else:
            chosen.append(letter)
    if dry_run or not chosen:
        return len(chosen), left
    producer = Producer(config.kafka, "dlq")
    try:
        sent = [
            producer.send(letter.topic, letter.message.value, letter.message.key, replay_headers(letter))
            for letter in chosen
        ]
        until = time.monotonic() + timeout
        for future in sent:
            future.result(max(0.1, until - time.monotonic()))
    except TimeoutError:
        raise MessagingFault(f"the broker did not take all of the letters within {timeout:g} s") from None
    finally:
        producer.close(2.0)
    return len(chosen), left


def _unfit(letter: DeadLetter, topics: tuple[str, ...], named: bool) -> str | None:
    if letter.topic not in topics or letter.topic == DEAD_LETTERS:
        return "their original topic is none of ours"
    if letter.truncated:
        return "they were too large to be kept whole"
    if letter.attempt >= MOST_ATTEMPTS and not named:
        return f"they failed {MOST_ATTEMPTS} times already (name one by --offset)"
    return None


def replay_headers(letter: DeadLetter) -> dict[str, bytes]:
    """The original headers, the attempt that this will be, and what the first one was."""
    original = {name: value for name, value in letter.message.headers.items() if not name.startswith("dlq_")}
    return {**original, "dlq_attempt": str(letter.attempt + 1).encode(), "dlq_origin": letter.origin.encode()}
