"""Around a request: what a client hears when the server stops under it."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from workers.api.edge import Edge

SCOPE: Scope = {"type": "http", "method": "GET", "path": "/v1/covers/a/image", "headers": [], "route": None}


def cancelled(begun: list[Message]) -> list[Message]:
    """What is sent when a request is given up that had sent `begun`."""
    sent: list[Message] = []

    class Route:
        path = "/v1/covers/{item_id}/image"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in begun:
            await send(message)
        await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(dict(message))

    async def scenario() -> None:
        task: asyncio.Task[Any] = asyncio.create_task(Edge(app)({**SCOPE, "route": Route()}, receive, send))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    return sent


def test_a_request_that_a_stopping_server_gives_up_is_a_503() -> None:
    start, body = cancelled([])
    assert start["status"] == 503
    assert (b"retry-after", b"2") in start["headers"]
    assert b"stopping" in body["body"]


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    sent = cancelled([{"type": "http.response.start", "status": 200, "headers": []}])
    assert [message.get("status") for message in sent] == [200]
