"""`icg publish`, `icg refresh`, `icg retract`: what a platform's own code sends, from the command line."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
from pydantic import ValidationError

from workers.events import Event, ItemPublish, ItemRefresh, explain
from workers.exceptions import MessagingFault, UserError

if TYPE_CHECKING:
    from workers.catalogue import Catalogue, Entry, Picture
    from workers.messaging import Producer
    from workers.settings import Settings
    from workers.storage import ObjectStore

T = TypeVar("T")

REFERENCES = "references"
MOST_NAMED = 5
"""Bad rows named one by one; of the others only how many."""


class FileFormat(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"


Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for the broker before giving up.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands on the root of `icg`."""
    app.command()(publish)
    app.command()(refresh)
    app.command()(retract)


def publish(
    file: Annotated[Path, typer.Argument(help="JSONL or CSV, one item a row.")],
    file_format: Annotated[FileFormat | None, typer.Option("--format", help="Default: by the ending.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of local reference images; default: the file's own.", exists=True, file_okay=False),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Publish the good rows of a file with bad ones.")
    ] = False,
    timeout: Timeout = 60.0,
) -> None:
    """Publish a file of items. Local reference images are stored first; one bad row and nothing is sent."""
    from workers.settings import settings

    began = time.monotonic()
    read = read_file(settings(), file, file_format.value if file_format else None, images, skip_bad)
    for bad in read.bad[:MOST_NAMED]:
        typer.echo(f"icg: {file.name} {bad}", err=True)
    if read.ignored:
        typer.echo(f"icg: columns that mean nothing here: {', '.join(sorted(read.ignored))}", err=True)
    stored = publish_entries(settings(), read.entries, timeout)
    typer.echo(
        f"published {_count(len(read.entries), 'item')} ({_count(stored, 'new reference image')}, "
        f"{_count(len(read.bad), 'bad row')} skipped) in {time.monotonic() - began:.1f} s"
    )


def refresh(
    items: Annotated[list[str], typer.Argument(metavar="ITEM…", help="Items that are published already.")],
    segment: Annotated[list[str] | None, typer.Option(help="Only this segment; may be repeated.")] = None,
    reason: Annotated[str, typer.Option(help="Kept in the audit tables.")] = "asked",
    release: Annotated[int | None, typer.Option(min=1, help="Draw under this release or a later one.")] = None,
    priority: Annotated[int, typer.Option(min=0, max=9)] = 0,
    timeout: Timeout = 60.0,
) -> None:
    """Ask for new covers of items, all segments or some."""
    from workers.settings import settings

    with _arguments():
        events = [
            ItemRefresh(
                item_id=item,
                segments=tuple(segment) if segment else None,
                reason=reason,
                release=release,
                priority=priority,
            )
            for item in dict.fromkeys(items)
        ]
    send(settings(), ((event, None) for event in events), len(events), timeout)
    typer.echo(f"asked for new covers of {_count(len(events), 'item')}")


def retract(
    item: Annotated[str, typer.Argument(help="The item whose covers are to be taken down.")],
    version: Annotated[int | None, typer.Option(min=1, help="item_version; default: the time, later than any.")] = None,
    timeout: Timeout = 60.0,
) -> None:
    """Take an item's covers down. Publishing it again with a greater version brings it back."""
    from workers.settings import settings

    with _arguments():
        event = ItemPublish(item_id=item, item_version=version or now_version(), action="retract")
    send(settings(), [(event, None)], 1, timeout)
    typer.echo(f"retracted {item} with version {event.item_version}")


def publish_file(config: Settings, file: Path, *, skip_bad: bool = False) -> int:
    """Publish a file of items; how many.

    Raises:
        UserError: a bad row, with its number and the reason; nothing was sent. Also for a file without a good row.
    """
    entries = read_file(config, file, skip_bad=skip_bad).entries
    publish_entries(config, entries)
    return len(entries)


def read_file(
    config: Settings,
    file: Path,
    file_format: Literal["jsonl", "csv"] | None = None,
    images: Path | None = None,
    skip_bad: bool = False,
) -> Catalogue:
    """Read and check a file; nothing is sent. Raises as `publish_file`."""
    from workers import catalogue

    read = catalogue.read(
        file,
        catalogue.format_of(file, file_format),
        images=images or file.parent,
        address=f"s3://{config.s3.bucket}/{REFERENCES}",
        first_version=now_version(),
        limits=config.references,
    )
    if read.bad and not (skip_bad and read.entries):
        named = [f"{file.name} {bad}" for bad in read.bad[:MOST_NAMED]]
        if len(read.bad) > MOST_NAMED:
            named.append(f"… and {len(read.bad) - MOST_NAMED} more bad rows")
        advice = "; --skip-bad publishes the others" if read.entries and not skip_bad else ""
        raise UserError("\n".join([*named, f"nothing is published{advice}"]))
    return read


def publish_entries(config: Settings, entries: Sequence[Entry], timeout: float = 60.0) -> int:
    """Store the pictures, then send the events; how many pictures were not in the store before."""
    from workers.messaging import wait_for_broker
    from workers.storage import ObjectStore

    wait_for_broker(config.kafka, min(10.0, timeout))
    stored = store_pictures(ObjectStore(config.s3), entries)
    send(config, ((entry.event, entry.event_id) for entry in entries), len(entries), timeout)
    return stored


def now_version() -> int:
    """An item_version that grows by itself: the time in ms."""
    return time.time_ns() // 1_000_000


def store_pictures(store: ObjectStore, entries: Iterable[Entry], threads: int = 8) -> int:
    """Store each local picture once, under its hash.

    Returns:
        How many were not there before.
    """
    pictures = {entry.picture.key: entry.picture for entry in entries if entry.picture}

    def put(picture: Picture) -> bool:
        return store.put_new(picture.key, picture.path.read_bytes(), picture.content_type)

    with ThreadPoolExecutor(threads) as pool:
        return sum(_progress(pool.map(put, pictures.values()), len(pictures), "reference images"))


def send(config: Settings, events: Iterable[tuple[Event, str | None]], count: int, timeout: float) -> None:
    """Send events and wait until the broker has them all.

    Args:
        events: with their ids, None for a new one.

    Raises:
        MessagingFault: no broker, or it did not acknowledge in time; what it took is named.
    """
    from workers import tracing
    from workers.messaging import Producer, wait_for_broker

    wait_for_broker(config.kafka, min(10.0, timeout))
    tracing.configure(config, "publish")
    producer = Producer(config.kafka, "publish")
    try:
        for _ in _progress(_delivered(producer, events, timeout), count, "events"):
            pass
    finally:
        producer.close(timeout=2.0)
        tracing.flush()


def _delivered(
    producer: Producer, events: Iterable[tuple[Event, str | None]], timeout: float, ahead: int = 5_000
) -> Iterator[None]:
    """One item for each event that the broker has; at most `ahead` are on the way."""
    waiting: deque[Future[tuple[int, int]]] = deque()
    done = 0
    try:
        for event, event_id in events:
            waiting.append(producer.send_event(event, event_id))
            if len(waiting) >= ahead:
                waiting.popleft().result(timeout)
                done += 1
                yield
        while waiting:
            waiting.popleft().result(timeout)
            done += 1
            yield
    except FutureTimeout:
        raise MessagingFault(
            f"the broker has taken {done} events and no more for {timeout:g} s; publish the file again later"
        ) from None


def _progress(things: Iterable[T], total: int, what: str) -> Iterable[T]:
    """The things, with a bar where somebody watches."""
    if not sys.stderr.isatty():
        return things
    from rich.console import Console
    from rich.progress import track

    return track(things, description=what, total=total, console=Console(stderr=True), transient=True)


@contextmanager
def _arguments() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise UserError(explain(error)) from None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
