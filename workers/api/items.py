"""What people and analysts ask: all covers of an item, the items there are, where a cover comes from."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import ValidationError

from workers.api import problems
from workers.api.answers import Answers
from workers.api.covers import SHORT, ItemId
from workers.api.documents import ITEM_PROBLEMS, json_answer, refusals, tagged_answer
from workers.api.lookup import Lookup
from workers.api.manifests import Manifests
from workers.api.models import COVER, ItemCovers, ItemList, Lineage
from workers.api.pictures import Pictures
from workers.events import Digest, Id
from workers.records import Manifest, Sidecar, sidecar_key
from workers.storage import ObjectStore

CoverId = Annotated[Digest, Path(description="As answers and the gallery show it.", examples=[COVER])]

log = logging.getLogger(__name__)

HOUR = "public, max-age=3600"
"""For bytes that never change under their address; not a day, because a cover may be switched off."""

_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture.", "content": {"image/webp": {}}},
    307: {"description": "Where the picture is."},
    304: {"description": "You have it."},
}


def router(store: ObjectStore, lookup: Lookup, answers: Answers, pictures: Pictures, manifests: Manifests) -> APIRouter:
    """The routes that choose nothing."""
    routes = APIRouter()

    @routes.get(
        "/v1/items/{item_id}/covers",
        tags=["covers"],
        summary="All covers of an item",
        description="One entry a segment, for recommenders that choose by themselves. What they then show is counted "
        "in click rates, never in estimates that need a propensity. Has an ETag.",
        response_model=ItemCovers,
        responses={304: {"description": "Unchanged."}, **refusals(*ITEM_PROBLEMS)},
    )
    async def get_item_covers(request: Request, item_id: ItemId) -> Response:
        row = await lookup.item(item_id)
        return tagged_answer(request, answers.offer(row, await lookup.scores(row)), SHORT)

    @routes.get(
        "/v1/items",
        tags=["items"],
        summary="The items there are",
        description="In the order of their ids, retracted ones left out; a page may hold fewer than `limit`. Read from "
        "the manifests, for people and analysts: a ranking never waits for it. Has an ETag.",
        response_model=ItemList,
        responses={304: {"description": "Unchanged."}, **refusals(422, 503)},
    )
    async def get_items(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        after: Annotated[Id | None, Query(description="The `next` of the page before.")] = None,
    ) -> Response:
        page = await lookup.in_thread(lambda: manifests.page(after, limit))
        document = {
            "items": [_listed(manifest, answers) for manifest in page.manifests],
            "next": page.following,
            "release": await lookup.in_thread(manifests.release),
            "personalization": answers.personalization,
        }
        return tagged_answer(request, document, "private, no-cache")

    @routes.get(
        "/v1/items/{item_id}/reference",
        tags=["items"],
        summary="The platform's own picture of an item",
        response_class=Response,
        responses={**_PICTURE, **refusals(*ITEM_PROBLEMS)},
    )
    async def get_reference(item_id: ItemId) -> Response:
        return await pictures.reference(await lookup.item(item_id), "private, max-age=60")

    @routes.get(
        "/v1/covers/{item_id}/{cover_id}",
        tags=["items"],
        summary="Where a cover comes from",
        description="Its sidecar: the event that asked for it, the revisions and the seed that made it, its rewards. "
        "Stays when the cover is superseded, blocked or its item retracted.",
        response_model=Lineage,
        responses=refusals(404, 422, 503),
    )
    async def get_lineage(item_id: ItemId, cover_id: CoverId) -> Response:
        stored = await lookup.in_thread(lambda: store.get(sidecar_key(item_id, cover_id)))
        if stored is None:
            raise problems.unknown_cover(item_id, cover_id)
        try:
            sidecar = Sidecar.decode(stored.data)
        except ValidationError as error:
            log.error("the sidecar of %s is not one: %s", cover_id, error)
            raise problems.unknown_cover(item_id, cover_id) from None
        document = sidecar.model_dump(mode="json", exclude={"embedding"})
        document["image"] = _image(item_id, cover_id)
        document["blocked"] = cover_id in answers.blocked
        return json_answer(document, "private, max-age=5")

    @routes.get(
        "/v1/covers/{item_id}/{cover_id}/image",
        tags=["items"],
        summary="The picture of one cover",
        description="By its id, under an address that stays. Chooses nothing: for galleries and audits.",
        response_class=Response,
        responses={**_PICTURE, **refusals(*ITEM_PROBLEMS)},
    )
    async def get_cover_image(request: Request, item_id: ItemId, cover_id: CoverId) -> Response:
        await lookup.item(item_id)  # a retracted item's pictures are gone, too
        return await pictures.cover(request, item_id, cover_id, HOUR if pictures.proxied else SHORT)

    return routes


def _image(item_id: str, cover_id: str) -> str:
    return f"/v1/covers/{item_id}/{cover_id}/image"


def _listed(manifest: Manifest, answers: Answers) -> dict[str, Any]:
    covers = [
        {
            "segment_id": segment,
            "cover_id": cover.cover_id,
            "rewards": cover.rewards,
            "fallback": cover.fallback,
            "blocked": cover.cover_id in answers.blocked,
            "image": _image(manifest.item_id, cover.cover_id),
            "width": cover.width,
            "height": cover.height,
        }
        for segment, renditions in manifest.covers.items()
        if (cover := renditions.get("default")) is not None
    ]
    in_store = (manifest.reference_image or "").startswith("s3://")
    return {
        "item_id": manifest.item_id,
        "item_version": manifest.item_version,
        "generation": manifest.generation,
        "release": manifest.release,
        "title": manifest.title,
        "category": manifest.category,
        "language": manifest.language,
        "reference_image": manifest.reference_image,
        "reference": f"/v1/items/{manifest.item_id}/reference" if in_store else None,
        "time": manifest.time,
        "covers": covers,
    }
