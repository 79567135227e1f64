"""`icg schemas`: JSON Schema of every event and stored record, and one AsyncAPI 3 document, made from the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from workers.events import (
    DEAD_LETTERS,
    EVENTS,
    CoverReady,
    Event,
    ItemPublish,
    ItemRefresh,
    ModelUpdate,
    PreferencePairs,
    UserBehavior,
    UserErasure,
)
from workers.exceptions import UserError
from workers.records import Manifest, ModelCard, Record, Release, SegmentSet, Sidecar, Switches

app = typer.Typer()

INFRA = Path(__file__).resolve().parent.parent / "infra"
ASYNCAPI = "asyncapi.yaml"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
RECORDS: dict[str, type[Record]] = {
    "manifest": Manifest,
    "sidecar": Sidecar,
    "release": Release,
    "model-card": ModelCard,
    "segments": SegmentSet,
    "switches": Switches,
}
WHO: dict[type[Event], tuple[str, str]] = {
    ItemPublish: ("a content platform", "covers"),
    ItemRefresh: ("icg refresh, the segment job", "covers"),
    UserBehavior: ("a platform", "preferences"),
    UserErasure: ("a platform", "every store of ours"),
    CoverReady: ("covers", "recommenders"),
    PreferencePairs: ("preferences", "the trainer in preferences"),
    ModelUpdate: ("whoever releases", "every worker, without a consumer group"),
}
"""Who sends and who receives, for the document."""


@app.callback()
def _group() -> None:
    """JSON Schema of events and records, and an AsyncAPI document."""


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where schemas/ and asyncapi.yaml are written.")] = INFRA,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if a file is not what it would be.")
    ] = False,
) -> None:
    """Write a JSON Schema for each event and record, and the AsyncAPI 3 document."""
    files = documents()
    if check:
        stale = stale_files(folder, files)
        if stale:
            named = f"{', '.join(stale[:3])}{f' and {len(stale) - 3} more' if len(stale) > 3 else ''}"
            raise UserError(f"{named} in {folder.name}/: not what the code says; run `icg schemas export`")
        typer.echo(f"{len(files)} files are what the code says")
        return
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    typer.echo(f"{len(files)} files written to {folder}")


def stale_files(folder: Path, files: dict[str, str]) -> list[str]:
    """Names of the files that are missing, differ, or describe what is gone."""
    wrong = [
        name
        for name, text in files.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]
    left = [f"schemas/{path.name}" for path in sorted((folder / "schemas").glob("*.json"))]
    return sorted({*wrong, *(name for name in left if name not in files)})


def documents() -> dict[str, str]:
    """Every file below `infra/` and its text."""
    models: dict[str, type[BaseModel]] = {**{event.topic: event for event in EVENTS}, **RECORDS}
    files = {f"schemas/{name}.json": _json(schema(name, model)) for name, model in models.items()}
    return files | {ASYNCAPI: _yaml(asyncapi())}


def schema(name: str, model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of one model: what a reader accepts."""
    made = model.model_json_schema(mode="validation")
    return {"$schema": DIALECT, "$id": f"urn:icg:schema:{name}:v1", **made}


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3 document: one channel a topic; the schemas lie beside it."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for event in EVENTS:
        name, title = event.topic, event.__name__
        sender, receiver = WHO[event]
        messages[name] = {
            "name": f"icg.{name}.v1",
            "title": title,
            "summary": _first_line(event),
            "contentType": "application/json",
            "headers": {"$ref": "#/components/schemas/cloudEventHeaders"},
            "payload": {"$ref": f"./schemas/{name}.json"},
            "bindings": {"kafka": {"key": _key(event), "bindingVersion": "0.5.0"}},
        }
        channels[name] = _channel(name, f"From {sender} to {receiver}.", event in (UserBehavior, UserErasure))
        for verb, who in (("send", sender), ("receive", receiver)):
            operations[f"{verb}-{name}"] = {
                "action": verb,
                "channel": {"$ref": f"#/channels/{name}"},
                "summary": f"By {who}.",
                "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
            }
    messages[DEAD_LETTERS] = {
        "name": DEAD_LETTERS,
        "title": "DeadLetter",
        "summary": "The original bytes under the original key; why, where from, by whom and the attempt are headers.",
        "headers": {"$ref": "#/components/schemas/deadLetterHeaders"},
        "payload": {},
        "bindings": {"kafka": {"key": {"type": "string"}, "bindingVersion": "0.5.0"}},
    }
    channels[DEAD_LETTERS] = _channel(
        DEAD_LETTERS, "From every reader to people: `icg dlq list`, `icg dlq replay`.", True
    )
    operations[f"receive-{DEAD_LETTERS}"] = {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{DEAD_LETTERS}"},
        "summary": "By icg dlq.",
        "messages": [{"$ref": f"#/channels/{DEAD_LETTERS}/messages/{DEAD_LETTERS}"}],
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "ICG Worker",
            "version": "1.0.0",
            "description": (
                "Cover images for every audience segment. Values are JSON; CloudEvents 1.0 attributes travel in ce_ "
                "headers (Kafka's binary content mode). Readers ignore fields that they do not know and refuse, with a "
                "reason, what breaks the schema. Made by `icg schemas export`."
            ),
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{address}",
                "protocol": "kafka",
                "variables": {"address": {"default": "127.0.0.1:9092", "description": "ICG_KAFKA_BOOTSTRAP_SERVERS"}},
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": _HEADERS},
    }


def _channel(topic: str, description: str, personal: bool) -> dict[str, Any]:
    kept = " Names people: kept at most 7 days." if personal else ""
    return {
        "address": topic,
        "description": description + kept,
        "messages": {topic: {"$ref": f"#/components/messages/{topic}"}},
        "bindings": {"kafka": {"topic": topic, "bindingVersion": "0.5.0"}},
    }


def _key(event: type[Event]) -> dict[str, Any]:
    if event is PreferencePairs:
        return {"type": "null", "description": "No key; all of it goes to partition 0."}
    field = "part" if event is ModelUpdate else "user_id" if event in (UserBehavior, UserErasure) else "item_id"
    return {"type": "string", "description": f"{field}"}


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


_HEADERS: dict[str, Any] = {
    "cloudEventHeaders": {
        "type": "object",
        "description": "Without ce_id an event is known by topic, partition and offset.",
        "properties": {
            "ce_specversion": _text("CloudEvents version.", const="1.0"),
            "ce_id": _text("Unique within ce_source: a repeated id is a repeated event."),
            "ce_source": _text("Who speaks, such as /icg/covers."),
            "ce_type": _text("icg.<topic>.v1."),
            "ce_time": _text("When it happened.", format="date-time"),
            "content-type": _text("Of the value.", const="application/json"),
            "traceparent": _text("W3C trace context, carried on."),
        },
    },
    "deadLetterHeaders": {
        "type": "object",
        "description": "Beside the original headers.",
        "required": [
            "dlq_reason",
            "dlq_topic",
            "dlq_partition",
            "dlq_offset",
            "dlq_service",
            "dlq_attempt",
            "dlq_time",
        ],
        "properties": {
            "dlq_reason": _text("Why, in words for a person."),
            "dlq_topic": _text("Where the refused message lay."),
            "dlq_partition": _text("A number."),
            "dlq_offset": _text("A number."),
            "dlq_service": _text("Who refused it."),
            "dlq_attempt": _text("1, and one more for each replay."),
            "dlq_time": _text("When it was refused.", format="date-time"),
            "dlq_origin": _text("topic:partition:offset of the first attempt, after a replay."),
            "dlq_truncated": _text("The bytes it had, where they did not fit beside the headers and were cut."),
        },
    },
}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _yaml(value: Any) -> str:
    try:
        import yaml
    except ModuleNotFoundError:
        raise UserError("PyYAML is not installed: pip install pyyaml") from None
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    return text
