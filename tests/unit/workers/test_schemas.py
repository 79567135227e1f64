"""The exported schemas: up to date, valid, and they accept what our events are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from workers.events import EVENTS, CoverReady, ItemPublish, ItemRefresh, Outcome, Source, UserBehavior
from workers.exceptions import UserError
from workers.schemas import INFRA, documents, export, stale_files
from workers.topics import TOPICS

FILES = documents()


def schema(name: str) -> Any:
    return json.loads(FILES[f"schemas/{name}.json"])


def test_the_files_in_infra_are_what_the_code_says() -> None:
    assert stale_files(INFRA, FILES) == [], "run `icg schemas export`"


def test_a_stale_or_forgotten_file_is_noticed(tmp_path: Path) -> None:
    export(tmp_path, check=False)
    assert stale_files(tmp_path, FILES) == []
    (tmp_path / "schemas/item-publish.json").write_text("{}")
    (tmp_path / "schemas/gone.json").write_text("{}")
    (tmp_path / "asyncapi.yaml").unlink()
    assert stale_files(tmp_path, FILES) == ["asyncapi.yaml", "schemas/gone.json", "schemas/item-publish.json"]
    with pytest.raises(UserError, match="icg schemas export"):
        export(tmp_path, check=True)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_each_is_a_valid_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(FILES[name]))


@pytest.mark.parametrize(
    "event",
    [
        ItemPublish(item_id="a", item_version=1, title="x", language="en-GB"),
        ItemRefresh(item_id="a", segments=("s-1",)),
        UserBehavior(event_id="e", user_id="u", item_id="a", kind="click"),
        CoverReady(
            item_id="a",
            item_version=1,
            action="retired",
            outcome=Outcome.RETRACTED,
            source=Source(topic="item-publish", partition=0, offset=1),
            release=1,
            generation=2,
        ),
    ],
    ids=lambda event: event.topic,
)
def test_what_we_send_is_valid(event: Any) -> None:
    jsonschema.validate(json.loads(event.encode()), schema(event.topic))


@pytest.mark.parametrize(
    "change", [{"item_id": ".."}, {"item_id": "a b"}, {"item_version": 0}, {"action": "destroy"}, {"title": "x" * 501}]
)
def test_what_we_refuse_is_invalid(change: dict[str, Any]) -> None:
    good = {"item_id": "a", "item_version": 1, "title": "x"}
    jsonschema.validate(good, schema("item-publish"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(good | change, schema("item-publish"))


def test_the_asyncapi_document_has_every_topic_and_no_loose_end() -> None:
    document = yaml.safe_load(FILES["asyncapi.yaml"])
    assert document["asyncapi"] == "3.0.0"
    assert set(document["channels"]) == set(TOPICS)
    assert {f"send-{event.topic}" for event in EVENTS} <= set(document["operations"])
    for reference in references(document):
        if reference.startswith("#/"):
            node = document
            for step in reference[2:].split("/"):
                node = node[step]
        else:
            assert reference.removeprefix("./") in FILES


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [each for value in node.values() for each in references(value)]
    return [each for value in node for each in references(value)] if isinstance(node, list) else []
