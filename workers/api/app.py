"""The FastAPI application, put together from its rooms' parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import date

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from workers.api import covers, gallery, items, operations, problems
from workers.api.answers import Answers, today
from workers.api.documents import describe
from workers.api.edge import Edge
from workers.api.lookup import Lookup
from workers.api.manifests import Manifests
from workers.api.pictures import Pictures
from workers.api.presign import Presigner
from workers.api.tastes import HeadWatcher, personal
from workers.features import Features
from workers.settings import Settings
from workers.storage import ObjectStore
from workers.switches import SwitchWatcher

ABOUT = """Which cover to show for an item to a reader.

A recommender asks `POST /v1/covers:batchGet` once a page, shows each `image`, and sends `cover_id` and `decision` along
with its impressions and clicks to the topic `user-behavior`. Every refusal is a problem document (RFC 9457)."""


def create_app(
    settings: Settings,
    features: Features,
    store: ObjectStore,
    switches: SwitchWatcher,
    heads: HeadWatcher | None = None,
    day: Callable[[], date] = today,
) -> FastAPI:
    """The application. Whoever calls it starts and stops `switches` and `heads`, and closes `features`."""
    presigner = Presigner(settings.s3)
    lookup = Lookup(features, store, personal=personal(settings.api))
    answers = Answers(settings, presigner, lambda: switches.state, lambda: heads.head if heads else None, day)
    pictures = Pictures(settings, store, lookup, answers, presigner)
    manifests = Manifests(store)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        lookup.close()
        manifests.close()

    app = FastAPI(
        title="ICG Worker",
        version="1",
        summary="Cover images for every audience segment.",
        description=ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,  # the redirect would go to whatever host the request names
        # Their pages load scripts from a CDN. /openapi.json is what tools read.
        docs_url=None,
        redoc_url=None,
        openapi_tags=[
            {"name": "covers", "description": "For recommenders."},
            {"name": "items", "description": "For people and analysts."},
            {"name": "operations", "description": "For whoever runs it."},
        ],
    )
    app.add_middleware(Edge)
    app.add_exception_handler(problems.Problem, problems.on_problem)
    app.add_exception_handler(RequestValidationError, problems.on_invalid)
    app.add_exception_handler(HTTPException, problems.on_http)
    app.add_exception_handler(Exception, problems.on_crash)
    app.include_router(covers.router(lookup, answers, pictures))
    app.include_router(items.router(store, lookup, answers, pictures, manifests))
    app.include_router(operations.router(operations.Readiness(lookup, switches), switches))
    app.include_router(gallery.router(pictures))
    describe(app)
    return app
