"""Every refusal is an RFC 9457 problem document, `application/problem+json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"

RETRY_SECONDS = 2
"""What we ask a client to wait when a store of ours is away: one restart of Redis, two polls of a load balancer."""


class Problem(Exception):
    """A refusal. `slug` names its kind for programs, `detail` tells a person about this one."""

    def __init__(
        self, status: int, slug: str, title: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.slug, self.title, self.detail = status, slug, title, detail
        self.headers = dict(headers or {})

    def document(self) -> dict[str, Any]:
        return {
            "type": f"urn:icg:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }

    def response(self, instance: str) -> Response:
        return Response(
            orjson.dumps({**self.document(), "instance": instance}),
            status_code=self.status,
            media_type=MEDIA_TYPE,
            headers={"Cache-Control": "no-store", **self.headers},
        )


def unknown_item(item_id: str) -> Problem:
    return Problem(
        404, "unknown-item", "No such item", f"No item {item_id} has been published, or it is not drawn yet."
    )


def retracted(item_id: str) -> Problem:
    return Problem(410, "retracted", "The item was retracted", f"The platform retracted item {item_id}.")


def no_picture(item_id: str) -> Problem:
    return Problem(
        404, "no-cover", "Nothing to show", f"Item {item_id} has no cover that may be shown and no reference image."
    )


def unknown_cover(item_id: str, cover_id: str) -> Problem:
    return Problem(404, "unknown-cover", "No such cover", f"Item {item_id} has no cover {cover_id}.")


def blocked(cover_id: str) -> Problem:
    return Problem(410, "blocked", "The cover is blocked", f"Cover {cover_id} was switched off.")


def bad_id(name: str) -> Problem:
    return Problem(
        422, "bad-request", "Not a valid request", f"{name}: an id matches [A-Za-z0-9._~-]{{1,128}}, not . or .."
    )


def unavailable(what: str) -> Problem:
    return Problem(
        503,
        "unavailable",
        "A store of ours does not answer",
        f"{what} does not answer; ask again.",
        {"Retry-After": str(RETRY_SECONDS)},
    )


def stopping() -> Problem:
    again = {"Retry-After": str(RETRY_SECONDS)}
    return Problem(503, "stopping", "This server is stopping", "Ask again; another one answers.", again)


async def on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response(request.url.path)


async def on_invalid(request: Request, error: Exception) -> Response:
    """What FastAPI's validation refused: which field and why, never the input itself."""
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return Problem(422, "bad-request", "Not a valid request", "; ".join(found[:3]) + more).response(request.url.path)


async def on_http(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    slug = {404: "unknown-path", 405: "method-not-allowed", 413: "too-large"}.get(error.status_code, "bad-request")
    problem = Problem(
        error.status_code, slug, str(error.detail), f"{request.method} {request.url.path}: {error.detail}"
    )
    problem.headers.update(error.headers or {})
    return problem.response(request.url.path)


async def on_crash(request: Request, error: Exception) -> Response:
    """A bug of ours: the log has the traceback, the client an answer of the same kind as ever."""
    return Problem(500, "internal", "A mistake of ours", "The request was not answered; it is logged.").response(
        request.url.path
    )
