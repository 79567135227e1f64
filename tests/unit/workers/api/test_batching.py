"""Reads that wait together are one read."""

from __future__ import annotations

import asyncio

import pytest

from workers.api.batching import Batcher


class Source:
    """A slow read that notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.open = asyncio.Event()
        self.fails = False

    async def read(self, keys: list[str]) -> dict[str, str]:
        self.asked.append(keys)
        await self.open.wait()
        if self.fails:
            raise OSError("away")
        return {key: key.upper() for key in keys if key != "absent"}


def test_while_one_read_runs_the_next_gathers_everybody():
    async def main() -> None:
        source = Source()
        batcher = Batcher(source.read)
        first = asyncio.create_task(batcher.get(["a"]))
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.get([key, "b"])) for key in ("c", "d", "absent")]
        await asyncio.sleep(0.01)
        source.open.set()
        assert await first == {"a": "A"}
        assert [(await each)["b"] for each in rest] == ["B", "B", "B"]
        assert source.asked == [["a"], ["c", "b", "d", "absent"]]
        assert "absent" not in await rest[2]

    asyncio.run(main())


def test_a_full_batch_is_closed():
    async def main() -> None:
        source = Source()
        source.open.set()
        batcher = Batcher(source.read, most=2)
        await asyncio.gather(*(batcher.get([str(k)]) for k in range(5)))
        assert [len(keys) for keys in source.asked] == [2, 2, 1]

    asyncio.run(main())


def test_a_failed_read_fails_all_who_wait_and_nobody_after():
    async def main() -> None:
        source = Source()
        source.open.set()
        source.fails = True
        batcher = Batcher(source.read)
        results = await asyncio.gather(batcher.get(["a"]), batcher.get(["b"]), return_exceptions=True)
        assert [type(result) for result in results] == [OSError, OSError]
        source.fails = False
        assert await batcher.get(["a"]) == {"a": "A"}

    asyncio.run(main())


def test_a_client_that_hangs_up_cancels_nobody_else():
    async def main() -> None:
        source = Source()
        batcher = Batcher(source.read)
        gone, stays = (asyncio.create_task(batcher.get(["a"])) for _ in range(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        source.open.set()
        assert await stays == {"a": "A"}
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(main())
