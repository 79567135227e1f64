"""Hundreds of requests that OpenAPI allows, and of ones that it does not: no 5xx, no answer outside of its schema."""

from __future__ import annotations

import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from bench import api_world
from workers.embedded import Embedded
from workers.features import Features
from workers.settings import Feast, Settings
from workers.storage import ObjectStore

A_DAY, A_NIGHT = 15, 1000
"""Generated for each of the eleven routes in either mode; by night over ten thousand."""


@pytest.fixture(scope="module")
def api_schema(embedded: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    repo = tmp_path_factory.mktemp("schema") / "feast"
    shutil.copytree(embedded.feast.repo, repo)
    feast = Feast(repo=repo, yaml=repo / "feature_store.yaml")
    s3 = embedded.s3.model_copy(update={"bucket": f"schema-{uuid.uuid4().hex[:12]}"})
    store, features = ObjectStore(s3), Features(feast)
    store.ensure_bucket()
    api_world.publish(features, store, "known", segments=("neutral", "s-1"), pictures=True)
    features.close()
    with api_world.running(Settings(s3=s3, feast=feast)) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(
    "examples", [A_DAY, pytest.param(A_NIGHT, marks=[pytest.mark.night, pytest.mark.timeout(7200)])]
)
def test_no_request_breaks_the_api(api_schema: Any, mode: GenerationMode, examples: int) -> None:
    sent: Counter[str] = Counter()
    for operation in (result.ok() for result in api_schema.get_all_operations()):

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            sent[case.path] += 1
            case.call_and_validate()
            if "item_id" in (case.path_parameters or {}):
                # Generated ids are unknown; the same request about an item that is there goes further.
                case.path_parameters["item_id"] = "known"
                case.call_and_validate(checks=[not_a_server_error])

        try:
            send()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, operation.path  # a route without parameters cannot be asked wrongly
    assert sum(sent.values()) >= 5 * examples
