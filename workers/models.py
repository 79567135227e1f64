"""`icg models`: what is released, what was, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from workers.exceptions import BadPart, UserError
from workers.records import Part

if TYPE_CHECKING:
    from workers.records import Release
    from workers.releases import Releases

app = typer.Typer()


@contextmanager
def _releases(announce: bool = False) -> Iterator[Releases]:
    from workers.messaging import Producer
    from workers.releases import Releases
    from workers.settings import settings
    from workers.storage import ObjectStore

    with closing(Producer(settings().kafka, "models")) if announce else nullcontext() as producer:
        yield Releases(ObjectStore(settings().s3), settings().cache, producer)


@app.command("list")
def list_releases(last: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 10) -> None:
    """Releases, newest first: what each changed, and why. Of the newest all revisions."""
    with _releases() as releases:
        current = releases.current()
        if current is None:
            raise UserError("nothing is released yet")
        rows = _before(releases, current.number, last + 1)
    for release, before in zip(rows[:last], [*rows[1:], None], strict=False):
        old = before.parts if before else {}
        new = {part: revision for part, revision in release.parts.items() if old.get(part) != revision}
        typer.echo(f"{release.number:5}  {release.time:%Y-%m-%d %H:%M:%S}  {_told(new) or 'nothing new'}")
        typer.echo(f"       {' '.join(release.reason.split())}")
    typer.echo(f"release {current.number}, in force: {_told(current.parts)}")


def _told(parts: Mapping[Part, str]) -> str:
    return " ".join(f"{part}={revision[:8]}" for part, revision in sorted(parts.items()))


def _before(releases: Releases, number: int, most: int) -> list[Release]:
    """Up to so many releases from `number` down; a number is missing where two were published at once."""
    found: list[Release] = []
    while number > 0 and len(found) < most:
        with suppress(BadPart):
            found.append(releases.release(number))
        number -= 1
    return found


@app.command()
def card(part: str, revision: Annotated[str, typer.Argument(help="All 64 digits, or the first few.")]) -> None:
    """The model card of one revision as JSON."""
    if part not in get_args(Part):
        raise UserError(f"{part!r} is no part; there are {', '.join(get_args(Part))}")
    known = cast(Part, part)
    with _releases() as releases:
        try:
            found = releases.card(known, releases.find(known, revision))
        except BadPart as error:
            raise UserError(str(error)) from None
    typer.echo(found.model_dump_json(indent=2, exclude_none=True))


@app.command()
def release(
    folder: Annotated[
        Path,
        typer.Argument(
            help="With some of base/ mllm/ space/ adapter/ rewards/ preference/ (in place of what clicks taught).",
            exists=True,
            file_okay=False,
        ),
    ],
    reason: Annotated[str, typer.Option(help="Kept in the release.")] = "",
) -> None:
    """Release the parts that a folder has; what it lacks stays as it is. The workers swap it in between two batches."""
    from workers.bootstrap import IN_SPACE, PARTS

    with _releases(announce=True) as releases:
        current = releases.current()
        if current is None:
            raise UserError(f"nothing is released yet: icg bootstrap --model {folder}")
        there = [part for part in PARTS if (folder / part).is_dir()]
        if not there:
            raise UserError(f"{folder} has none of {', '.join(PARTS)}")
        parts = dict(current.parts)
        for part in there:
            space = parts["space"] if part in IN_SPACE else None
            parts[part] = releases.put_folder(part, folder / part, space=space, made_by="icg models release")
        changed = {part: revision for part, revision in parts.items() if current.parts.get(part) != revision}
        if not changed:
            typer.echo(f"release {current.number} has them already")
            return
        try:
            made = releases.publish(changed, reason or f"released from {folder}", next(iter(changed)))
        except BadPart as error:
            raise UserError(str(error)) from None
        typer.echo(f"release {made.number} has new {', '.join(sorted(changed))}")


@app.command()
def rollback(
    number: Annotated[int, typer.Argument(min=1, help="The release whose revisions to go back to.")],
    reason: Annotated[str, typer.Option(help="Kept in the release.")] = "",
) -> None:
    """Release the revisions of an older release again, under a new number."""
    with _releases(announce=True) as releases:
        try:
            release = releases.rollback(number, reason or f"rollback to {number}")
        except BadPart as error:
            raise UserError(str(error)) from None
    typer.echo(f"release {release.number} has the revisions of release {number}")
