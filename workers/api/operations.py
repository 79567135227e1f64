"""Alive, ready, measured.

Ready means: the switches were read once and Feast answers. S3 is not part of it: without S3 the api still chooses and
signs for every item that Feast has, and taking all replicas out of service would turn a small outage into a large one.
"""

from __future__ import annotations

import asyncio
import time

import orjson
from fastapi import APIRouter, Response
from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from workers.api import metrics
from workers.api.lookup import Lookup
from workers.api.problems import Problem
from workers.switches import SwitchWatcher

PROBE_SECONDS = 1.0
"""A probe's result holds for so long, however often readiness is asked."""


class Readiness:
    """Whether to send readers here."""

    def __init__(self, lookup: Lookup, switches: SwitchWatcher) -> None:
        self._lookup, self._switches = lookup, switches
        self._feast, self._probed = False, float("-inf")
        self._probing = asyncio.Lock()

    async def conditions(self) -> dict[str, bool]:
        """Name -> holds; `s3` is told but not asked for."""
        async with self._probing:
            if time.monotonic() - self._probed > PROBE_SECONDS:
                try:
                    await self._lookup.probe()
                    self._feast = True
                except Problem:
                    self._feast = False
                self._probed = time.monotonic()
        return {"feast": self._feast, "switches": self._switches.known.is_set(), "s3": self._switches.age < 15}


def router(readiness: Readiness, switches: SwitchWatcher) -> APIRouter:
    routes = APIRouter(tags=["operations"])

    @routes.get("/healthz", summary="Alive", responses={200: {"content": {"application/json": {}}}})
    async def healthz() -> Response:
        return Response(b'{"alive":true}', media_type="application/json", headers={"Cache-Control": "no-store"})

    @routes.get(
        "/readyz",
        summary="Ready: the switches are known and Feast answers",
        responses={503: {"description": "Not ready; the body says what is missing."}},
    )
    async def readyz() -> Response:
        conditions = await readiness.conditions()
        ready = conditions["feast"] and conditions["switches"]
        return Response(
            orjson.dumps({"ready": ready, "conditions": conditions}),
            status_code=200 if ready else 503,
            media_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    @routes.get("/metrics", summary="Prometheus", response_class=Response)
    async def prometheus() -> Response:
        metrics.SWITCHES_AGE.set(switches.age)
        metrics.BLOCKED.set(len(switches.state.blocked))
        metrics.PERSONALIZATION.set(switches.state.personalization)
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return routes
