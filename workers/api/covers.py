"""What recommenders ask: one cover, a page of covers, a picture."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import TypeAdapter, ValidationError

from workers.api import metrics, problems
from workers.api.answers import Answers, with_parent
from workers.api.documents import ITEM_PROBLEMS, json_answer, refusals
from workers.api.lookup import ItemRow, Lookup
from workers.api.models import Answer, BatchAnswer, BatchRequest
from workers.api.pictures import Pictures
from workers.api.problems import Problem
from workers.decisions import Choice, Reader
from workers.events import Id

SHORT = "private, max-age=5"
"""5 s here and 3 s until the switches are read: what is switched off is gone within 10."""

_ID: TypeAdapter[str] = TypeAdapter(Id)

ItemId = Annotated[Id, Path(description="The platform's own id of the item.", examples=["lantern"])]
UserId = Annotated[
    Id | None, Query(description="Who will see it. Unknown people get the neutral cover.", examples=["reader-0017"])
]
SegmentId = Annotated[
    Id | None, Query(description="Instead of the user's own segment, or without a user.", examples=["neutral"])
]

Surface = Annotated[
    str | None,
    Query(max_length=64, description="Where it is shown; may have a policy of its own.", examples=["home"]),
]


def router(lookup: Lookup, answers: Answers, pictures: Pictures) -> APIRouter:
    """The routes under /v1/covers that choose."""
    routes = APIRouter(tags=["covers"])

    async def reader_of(user_id: str | None, segment_id: str | None, surface: str | None) -> Reader:
        if not answers.personalization:
            return answers.under_policy(Reader(user_id), None, surface)
        known = await lookup.reader(user_id, segment_id)
        return answers.under_policy(known.reader, known.person, surface)

    async def answer_for(
        item_id: str, user_id: str | None, segment_id: str | None, surface: str | None
    ) -> tuple[ItemRow, dict[str, Any]]:
        reader, row = await asyncio.gather(reader_of(user_id, segment_id, surface), lookup.item(item_id))
        choice = answers.choose(row, reader)
        if segment_id is not None and answers.wants_parent(choice, reader):
            reader = with_parent(reader, await lookup.parent(segment_id))
            choice = answers.choose(row, reader)
        answer = answers.answer(row, reader, choice)
        metrics.SERVED.labels(choice.served, choice.fallback or "").inc()
        return row, answer

    @routes.get(
        "/v1/covers/{item_id}",
        summary="The cover of one item for one reader",
        description="Own segment's cover, else its parent's, else the neutral one, else the platform's reference "
        "image; `served` and `fallback` say which and why. A small share of readers is shown another segment's cover "
        "to learn from (`exploration`). The answer for a (user, item) stays the same all day unless the covers "
        "change, or what is known of the user.",
        response_model=Answer,
        responses=refusals(*ITEM_PROBLEMS),
    )
    async def get_cover(
        item_id: ItemId, user_id: UserId = None, segment_id: SegmentId = None, surface: Surface = None
    ) -> Response:
        _, answer = await answer_for(item_id, user_id, segment_id, surface)
        return json_answer(answer, SHORT)

    @routes.post(
        "/v1/covers:batchGet",
        summary="The covers of a page: up to 200 items for one reader",
        description="One entry an item, in the order asked. An item that is unknown, retracted or has a bad id gets a "
        "`problem` in its own entry and spoils no other.",
        response_model=BatchAnswer,
        responses=refusals(400, 413, 422, 503),
    )
    async def batch_get(body: BatchRequest) -> Response:
        reader, rows = await _page(lookup, reader_of, body)
        choices = _choices(answers, rows, reader)
        if body.segment_id is not None and any(answers.wants_parent(choice, reader) for choice in choices.values()):
            reader = with_parent(reader, await lookup.parent(body.segment_id))
            choices = _choices(answers, rows, reader)
        entries = [_entry(answers, rows[item_id], reader, item_id, choices.get(item_id)) for item_id in body.item_ids]
        # Counted once a page: a label look-up for each item would cost a tenth of its answer.
        kinds = Counter((entry["served"], entry["fallback"]) for entry in entries if "served" in entry)
        for (served, fallback), count in kinds.items():
            metrics.SERVED.labels(served, fallback or "").inc(count)
        return json_answer({"covers": entries}, "no-store")

    @routes.get(
        "/v1/covers/{item_id}/image",
        summary="The picture itself",
        description="For an `<img>` without any code: chooses as `GET /v1/covers/{item_id}` does, then redirects "
        "to the picture, or gives its bytes where readers cannot reach the store.",
        response_class=Response,
        responses={
            200: {"description": "The picture.", "content": {"image/webp": {}}},
            307: {"description": "Where the picture is."},
            **refusals(*ITEM_PROBLEMS),
        },
    )
    async def get_image(
        request: Request,
        item_id: ItemId,
        user_id: UserId = None,
        segment_id: SegmentId = None,
        surface: Surface = None,
    ) -> Response:
        row, answer = await answer_for(item_id, user_id, segment_id, surface)
        if not pictures.proxied:
            return RedirectResponse(answer["image"], 307, headers={"Cache-Control": SHORT})
        if answer["cover_id"] is not None:
            return await pictures.cover(request, item_id, answer["cover_id"], SHORT)
        return await pictures.reference(row, SHORT)

    return routes


async def _page(
    lookup: Lookup, reader_of: Callable[[str | None, str | None, str | None], Awaitable[Reader]], body: BatchRequest
) -> tuple[Reader, dict[str, ItemRow | Problem]]:
    """The reader and all rows; bad ids become problems without being looked up."""
    bad: dict[str, ItemRow | Problem] = {}
    good: list[str] = []
    for item_id in dict.fromkeys(body.item_ids):
        try:
            good.append(_ID.validate_python(item_id))
        except ValidationError:
            bad[item_id] = problems.bad_id("item_id")
    reader, found = await asyncio.gather(reader_of(body.user_id, body.segment_id, body.surface), lookup.items(good))
    return reader, {**found, **bad}


def _choices(answers: Answers, rows: Mapping[str, ItemRow | Problem], reader: Reader) -> dict[str, Choice]:
    good = [row for row in rows.values() if isinstance(row, ItemRow)]
    return {row.item_id: choice for row, choice in zip(good, answers.choices(good, reader), strict=True)}


def _entry(
    answers: Answers, row: ItemRow | Problem, reader: Reader, item_id: str, choice: Choice | None
) -> dict[str, Any]:
    if isinstance(row, ItemRow):
        try:
            return answers.answer(row, reader, choice)
        except Problem as problem:
            row = problem
    return {"item_id": item_id, "problem": row.document()}
