"""`icg audit`: questions to the audit tables, answered with DuckDB on this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from workers.audit.show import Format, show, show_one

if TYPE_CHECKING:
    from workers.audit.views import Views

app = typer.Typer()

FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How to print the answer.")]


def _views() -> Views:
    from workers.exceptions import StorageFault, UserError
    from workers.settings import settings
    from workers.storage import ObjectStore

    try:
        from workers.audit.views import Views
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'icg-worker[audit]'") from None
    s3 = settings().s3
    if not ObjectStore(s3, timeout=5, attempts=1).ping():
        raise StorageFault(f"no answer from bucket {s3.bucket} at {s3.endpoint or 'Amazon S3'}")
    return Views(s3)


@app.command()
def lineage(
    cover_id: Annotated[str, typer.Argument(help="All 64 digits, or the first few.")],
    form: FormatOption = Format.TABLE,
) -> None:
    """Where one cover comes from: event, item, segment, revisions, seed, rewards."""
    views = _views()
    from workers.audit import questions
    from workers.settings import settings
    from workers.storage import ObjectStore

    typer.echo(show_one(questions.lineage(views, ObjectStore(settings().s3), cover_id.lower()), form))


@app.command()
def days(form: FormatOption = Format.TABLE) -> None:
    """Events by day and topic."""
    views = _views()
    from workers.audit import questions

    typer.echo(show(questions.days(views), form))


@app.command()
def clicks(
    since: Annotated[str | None, typer.Option(help="Only what happened at or after this time.")] = None,
    until: Annotated[str | None, typer.Option(help="Only impressions before this time.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Impressions, clicks and click-through rate (95 % Wilson interval) by segment and release."""
    views = _views()
    from workers.audit import questions

    first = questions.parse_time(since) if since else None
    last = questions.parse_time(until) if until else None
    typer.echo(show(questions.clicks(views, first, last), form))


@app.command()
def policy(
    policies: Annotated[
        list[str] | None, typer.Argument(help="segment, neutral, uniform, softmax, thompson, logged; all if none.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only what happened at or after this time.")] = None,
    until: Annotated[str | None, typer.Option(help="Only impressions before this time.")] = None,
    reward: Annotated[str, typer.Option(help="What counts as success: click or like.")] = "click",
    exploration: Annotated[float, typer.Option(min=0, max=1, help="Of the policies in question.")] = 0.0,
    release: Annotated[int | None, typer.Option(help="Whose preference head softmax and thompson use.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """What other policies' covers would have been clicked: IPS, SNIPS and doubly robust, with 95 % intervals.

    From impressions with a decision token alone. Refuses a policy that would show what the log could not have shown.
    """
    views = _views()
    from workers.audit import evaluation
    from workers.audit.questions import parse_time
    from workers.settings import settings

    report = evaluation.compare(
        settings(),
        views,
        policies or [],
        parse_time(since) if since else None,
        parse_time(until) if until else None,
        reward=reward,
        exploration=exploration,
        release=release,
    )
    if form is Format.JSON:
        typer.echo(show_one(report.record(), form))
    elif form is Format.CSV:
        typer.echo(show(report.estimates, form, evaluation.COLUMNS))
    else:
        typer.echo(show_one(report.log, form))
        typer.echo(show(report.estimates, form, evaluation.COLUMNS))
        typer.echo(show(report.clicks, form))
    for line in report.refused:
        typer.echo(f"icg: {line}", err=True)
    if report.refused and not report.estimates:
        raise typer.Exit(1)


@app.command()
def state(
    item_id: str,
    as_of: Annotated[str | None, typer.Option(help="A time such as 2026-11-21T14:30; default: now.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """The covers that an item had at a time."""
    views = _views()
    from workers.audit import questions

    at = questions.parse_time(as_of) if as_of else datetime.now(UTC)
    rows = questions.state(views, item_id, at)
    typer.echo(show(rows, form, list(questions.STATE)))
    if not rows:
        typer.echo(f"icg: {item_id} had nothing yet at {at.isoformat()}", err=True)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="On item_publish, cover_ready, …; `show tables` lists them.")],
    form: FormatOption = Format.TABLE,
) -> None:
    """Any SQL, on views named like the topics with underscores."""
    answer = _views().ask(query)
    typer.echo(show(answer.to_pylist(maps_as_pydicts="lossy"), form, answer.column_names))
