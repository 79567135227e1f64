"""JSON answers, and the problem documents of each route in OpenAPI."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from workers.api import models, problems

_MEANING = {
    400: "The body is not JSON in UTF-8.",
    404: "Unknown: never published, or not drawn yet.",
    410: "Retracted by the platform, or switched off.",
    413: "The body is too large.",
    422: "A bad id or a bad body.",
    503: "A store of ours does not answer; ask again after `Retry-After` seconds.",
}

ITEM_PROBLEMS = (404, 410, 422, 503)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that refuses so."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": _MEANING[status], "content": {problems.MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def json_answer(document: Any, cache_control: str) -> Response:
    """A document as it is: it was built by us and is not validated again, which would take longer than to make it."""
    return Response(orjson.dumps(document), media_type="application/json", headers={"Cache-Control": cache_control})


def tagged_answer(request: Request, document: Any, cache_control: str) -> Response:
    """The same with an ETag; 304 for who has it already."""
    body = orjson.dumps(document)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"Cache-Control": cache_control, "ETag": tag}
    if matches(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def matches(request: Request, tag: str) -> bool:
    """Does `If-None-Match` name this tag? Weak comparison, as RFC 9110 asks of it."""
    given = request.headers.get("if-none-match")
    if given is None:
        return False
    return given.strip() == "*" or tag in {each.strip().removeprefix("W/") for each in given.split(",")}


def describe(app: FastAPI) -> None:
    """Let OpenAPI know the problem document, which no route has as its response model."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = original()
            schemas = schema["components"]["schemas"]
            schemas.setdefault("Problem", models.Problem.model_json_schema())
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        return app.openapi_schema or original()

    app.openapi = openapi  # type: ignore[method-assign]
