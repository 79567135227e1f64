"""The command `icg`. Each command's own module does the work and is imported only when it is asked for."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from icg.evaluation.cli import JsonFile

app = typer.Typer(
    name="icg",
    help="Cover images for every audience segment, drawn within seconds of publication.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SERVICES = ("covers", "preferences", "audit", "api", "people")
"""Rooms of `workers/`; each has a `service.run(settings, stop) -> exit status`."""


@app.command(no_args_is_help=True)
def run(
    service: Annotated[str, typer.Argument(help=f"One of {', '.join(SERVICES)}.")],
    with_parent: Annotated[bool, typer.Option(help="End when standard input closes (for supervisors).")] = False,
) -> None:
    """Run one service until SIGTERM; settings come from ICG_… variables."""
    from workers import logs, tracing
    from workers.settings import settings
    from workers.supervisor import end_with_parent, on_signals

    if service not in SERVICES:
        raise typer.BadParameter(f"{service!r} is no service; there are {', '.join(SERVICES)}")
    stop = threading.Event()
    on_signals(stop)
    if with_parent:
        end_with_parent(stop)
    logs.configure(settings(), service)
    tracing.configure(settings(), service)
    _check_cache(settings().cache)
    room = importlib.import_module(f"workers.{service}.service")
    try:
        status = room.run(settings(), stop)
    finally:
        tracing.flush()
    raise typer.Exit(status)


def _check_cache(folder: Path) -> None:
    from workers.exceptions import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"ICG_CACHE: cannot write to {folder}: {error.strerror}") from None


@app.command()
def init(
    kind: Annotated[str, typer.Argument(help="`tiny`: the small stack; `adapter`: for a base and MLLM of one's own.")],
    directory: Annotated[Path, typer.Argument(help="Empty for `tiny`; with base, mllm and space for `adapter`.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the weights that are not trained.")] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="For `tiny`: folder of `icg train export`; default: as trained and shipped.")
    ] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="For `tiny`: random weights, to begin with.")] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Meta tokens of `adapter`.")] = 64,
    context: Annotated[int, typer.Option(min=0, help="For `adapter`: states of the prompt itself beside them.")] = 0,
) -> None:
    """Write a model directory, or the fresh adapter of one (docs/checkpoints.md)."""
    if kind == "adapter":
        from icg.own import init_adapter
        from workers.exceptions import UserError

        try:
            config = init_adapter(directory, tokens=tokens, context=context, seed=seed)
        except ValueError as error:  # BadWeights and Unsupported are
            raise UserError(str(error)) from None
        typer.echo(f"{directory}: adapter of {config.length} tokens from width {config.features} to {config.output}")
        return
    if kind != "tiny":
        raise typer.BadParameter(f"{kind!r} is unknown; there are `tiny` and `adapter`")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise typer.BadParameter(f"{directory} is there already and is not an empty folder")
    if weights is not None and not any(weights.glob("*.safetensors")):
        raise typer.BadParameter(f"no trained weights (*.safetensors) are in {weights}: `icg train export` writes them")
    if weights is not None or untrained:
        from icg import init_tiny

        init_tiny(directory, seed=seed, weights=None if untrained else weights)
    else:
        from icg.tiny import shipped

        shipped.write(directory)
    typer.echo(f"{directory}: {', '.join(sorted(path.name for path in directory.iterdir() if path.is_dir()))}")


@app.command()
def demo(
    exit_: Annotated[bool, typer.Option("--exit", help="End after the table.")] = False,
    json_file: JsonFile = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the api and its gallery.")] = 8080,
    folder: Annotated[Path, typer.Option(help="Where servers keep data and logs; emptied at the start.")] = Path(
        "demo"
    ),
    pages: Annotated[int, typer.Option(min=300, help="How many pages the simulated readers read.")] = 1500,
) -> None:
    """The whole loop on this machine: broker, S3, Feast, four services, a catalogue, simulated readers."""
    from workers.demo import Demo

    Demo(folder, port=port, pages=pages).run(stay=not exit_, json_file=json_file)


@app.command()
def simulate(
    catalogue: Annotated[Path, typer.Argument(help="The JSONL catalogue that was published.")],
    users: Annotated[Path, typer.Argument(help="Parquet file of users and embeddings.")],
    api: Annotated[str, typer.Option(help="Address of the api.")] = "http://127.0.0.1:8080",
    pages: Annotated[int, typer.Option(min=1, help="In all.")] = 1000,
    page_size: Annotated[int, typer.Option(min=1, max=200, help="Items on a page.")] = 12,
    at_once: Annotated[int, typer.Option(min=1, help="Pages that are read at a time.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Same seed and covers: same readers, tastes and pages.")] = 0,
    click_rate: Annotated[float, typer.Option(help="At the first position, of what leaves a reader cold.")] = 0.1,
    drift_at: Annotated[int | None, typer.Option(min=0, help="Page from which on tastes are others, once.")] = None,
    drift: Annotated[float, typer.Option(help="Share of a taste that is then new.")] = 0.5,
    present: Annotated[float, typer.Option(help="Share of the users who read at a time.")] = 0.8,
    churn: Annotated[float, typer.Option(min=0, help="Users who leave for others, per 1000 pages.")] = 20.0,
    json_file: JsonFile = None,
) -> None:
    """A simulated audience: fetches covers by HTTP, looks at their pixels, reports to user-behavior. Nobody is real."""
    import asyncio
    import json

    from icg.evaluation.audience import Habits
    from workers.exceptions import UserError
    from workers.messaging import Producer, wait_for_broker
    from workers.settings import settings
    from workers.simulate import Audience, look_for, read_items

    try:
        habits = Habits(click_rate, drift_at=drift_at, drift=drift, present=present, churn=churn / 1000)
    except ValueError as error:
        raise UserError(str(error)) from None
    items = read_items(catalogue)
    audience = Audience.load(users, items, seed=seed, habits=habits)
    look_for(api)
    wait_for_broker(settings().kafka, 10.0)
    producer = Producer(settings().kafka, "simulated-audience")
    try:
        totals = asyncio.run(audience.read(api, items, producer, pages=pages, page_size=page_size, readers=at_once))
    finally:
        producer.close()
    if json_file is not None:
        json_file.write_text(json.dumps(totals.figures(), indent=2) + "\n")
    typer.echo(
        f"simulated: {totals.pages} pages, {totals.impressions} impressions, {totals.clicks} clicks, "
        f"{totals.failures} pages failed; fetch p50 {totals.percentile(50) * 1000:.0f} ms"
    )


MOUNTED = {
    "audit": ("workers.audit.cli", "Answers from the audit tables."),
    "covers": ("workers.switches", "Take single covers down, and up again."),
    "dlq": ("workers.deadletters", "Look at dead letters, and send them again."),
    "models": ("workers.models", "Releases of trained parts."),
    "schemas": ("workers.schemas", "JSON Schemas and the AsyncAPI document."),
    "segments": ("workers.segments", "Groups of users with one vector."),
    "train": ("workers.train", "Stages of training, each into a folder, resumed by calling it again."),
    "topics": ("workers.topics", "Topics of a Kafka cluster, as a file has them."),
    "users": ("workers.users", "User embeddings from a recommender."),
}
"""Command groups: `icg <name> …` is the typer `app` of the module."""


EXTRAS = {
    "align": "train",
    "audit": "audit",
    "eval": "train",
    "init": "model",
    "people": "feast",
    "segments": "feast",
    "train": "train",
    "users": "feast",
}
"""What a command needs beyond the base install; `icg run NAME` needs the extra NAME."""


def main() -> None:
    """Entry point: whatever goes wrong ends in a line or two, never in a traceback."""
    status = _status()
    logging.shutdown()
    with suppress(BrokenPipeError):  # `icg … | head`
        sys.stdout.flush()
        sys.stderr.flush()
    # Not by the interpreter's own end: threads of native libraries are still there (deltalake, DuckDB, librdkafka), and
    # seen once, under load, one of them crashed it after a complete answer: status 139 for a success.
    os._exit(status)


@cache
def _command() -> Callable[..., int | None]:
    """The whole tree of commands, those of other modules mounted."""
    for name, (module, help_text) in MOUNTED.items():
        app.add_typer(importlib.import_module(module).app, name=name, help=help_text, no_args_is_help=True)
    for module in ("icg.evaluation.cli", "workers.align", "workers.bootstrap", "workers.publishing"):
        importlib.import_module(module).add_to(app)
    return typer.main.get_command(app)


OF_THE_CALLER = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""A file that was named wrongly, as is one of which a library, not the system, says what is wrong (no errno). Any other
`OSError` is the machine's (a full disk, a lost connection)."""


def _status() -> int:
    """Run the command; its exit status: 2 where it was used wrongly, 1 where something of ours does not answer."""
    from pydantic_settings.exceptions import SettingsError

    from workers.events import explain
    from workers.exceptions import BadPart, EmbeddedError, Fault, MessageTooLarge, OffsetLost, UserError

    # A command answers in its own lines; what is logged on the way is for services, which say where it goes.
    logging.getLogger("workers").addHandler(logging.NullHandler())
    try:
        return _command()(prog_name="icg", standalone_mode=False) or 0
    except typer.TyperException as error:  # typer's own answer is a box of six lines
        _say_usage(error)
        return error.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os._exit(0)
    except ValidationError as error:
        typer.echo(f"icg: a setting is wrong: {explain(error)}", err=True)
        return 2
    except SettingsError as error:
        typer.echo(f"icg: a setting is wrong: {error}", err=True)
        return 2
    except UserError as error:
        typer.echo(f"icg: {error}", err=True)
        return error.status
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in {"icg", "workers"}:
            raise
        named = [word for word in sys.argv[1:] if not word.startswith("-")]
        extra = EXTRAS.get(named[0] if named else "", "demo")
        if named[:1] == ["run"]:
            extra = named[1]
        typer.echo(f"icg: this needs the package {error.name}: pip install 'icg-worker[{extra}]'", err=True)
        return 1
    except UnicodeDecodeError as error:
        typer.echo(f"icg: a file that is no UTF-8 text: {error}", err=True)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"icg: {where}{error.strerror or error}", err=True)
        return 2 if isinstance(error, OF_THE_CALLER) or error.errno is None else 1
    except (Fault, BadPart, EmbeddedError, MessageTooLarge, OffsetLost) as error:
        typer.echo(f"icg: {error}", err=True)
        if isinstance(error, Fault) and _nowhere():
            typer.echo("icg: no ICG_KAFKA_… and no ICG_S3_… is set; beside `make demo`: source demo/env", err=True)
        return 1


def _nowhere() -> bool:
    """Was this process told of no server at all? Then its environment is missing, more likely than the servers."""
    from workers.settings import S3, Kafka, settings

    return settings().kafka == Kafka() and settings().s3 == S3()


def _say_usage(error: typer.TyperException) -> None:
    """What was wrong in one line, and where help is. A group without a command has printed its help already."""
    message = " ".join(error.format_message().split()).removeprefix("Invalid value: ").removesuffix(".")
    if message:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "icg"
        typer.echo(f"{command}: {message} (see {command} --help)", err=True)


if __name__ == "__main__":
    main()
