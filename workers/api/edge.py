"""Around every request: how long it took, how large its body may be, what a browser may do with the answer."""

from __future__ import annotations

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workers.api import metrics
from workers.api.problems import Problem, stopping

MOST_BODY_BYTES = 256 * 1024
"""200 item ids of 1000 characters and the rest."""
TOO_LARGE = f"The body is larger than {MOST_BODY_BYTES} bytes"


class Edge:
    """Plain ASGI: a middleware of Starlette's base class would cost more than the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, left = time.perf_counter(), 0, MOST_BODY_BYTES

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, TOO_LARGE)  # what FastAPI lets through while it reads a body
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            declared = dict(scope["headers"]).get(b"content-length", b"0")
            if declared.isdigit() and int(declared) > MOST_BODY_BYTES:
                refusal = Problem(413, "too-large", TOO_LARGE, TOO_LARGE, {"Connection": "close"})
                await refusal.response(scope["path"])(scope, receive, noted)
            else:
                await self._app(scope, limited, noted)
        except asyncio.CancelledError:
            # uvicorn gives up what is under way some time after it was told to stop, and would answer 500.
            if status:
                raise
            await stopping().response(scope["path"])(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            metrics.REQUESTS.labels(route, scope["method"], status or 500).observe(time.perf_counter() - began)
