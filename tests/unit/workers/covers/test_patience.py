"""A call that fails is tried again, and the worker is not ready for as long as any call still fails."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from workers.covers.patience import Patience
from workers.exceptions import FeatureFault
from workers.health import Health


def test_a_call_that_succeeds_does_not_hide_one_that_still_fails() -> None:
    unlocked = threading.Event()

    def write() -> str:
        if not unlocked.is_set():
            raise FeatureFault("database is locked")
        return "written"

    async def scenario() -> None:
        patience = Patience(pool, health)
        writing = asyncio.create_task(patience("feast", "write item_covers", write))
        async with asyncio.timeout(60):
            while not patience.waits("feast"):
                await asyncio.sleep(0.01)
        assert await patience("feast", "read vectors", lambda: "read") == "read"
        assert health.failed() == {"feast": "write item_covers: database is locked"}
        unlocked.set()
        assert await writing == "written"
        assert not patience.waits("feast")
        assert health.ready

    health = Health(0)
    with ThreadPoolExecutor(2) as pool:
        asyncio.run(scenario())
    health.close()


def test_a_call_that_is_given_up_waits_no_more() -> None:
    def write() -> None:
        raise FeatureFault("database is locked")

    async def scenario() -> None:
        patience = Patience(pool, health)
        writing = asyncio.create_task(patience("feast", "write item_covers", write))
        async with asyncio.timeout(60):
            while not patience.waits("feast"):
                await asyncio.sleep(0.01)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert not patience.waits("feast")

    health = Health(0)
    with ThreadPoolExecutor(2) as pool:
        asyncio.run(scenario())
    health.close()


def test_a_delivery_that_waits_is_not_hidden_by_a_broker_that_answers_other_questions() -> None:
    async def scenario() -> None:
        patience = Patience(pool, health)
        delivery: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(patience.until("kafka", delivery, "it takes nothing", seconds=0.01))
        async with asyncio.timeout(60):
            while not patience.waits("kafka"):
                await asyncio.sleep(0.01)
        patience.answered("kafka")
        assert health.failed() == {"kafka": "it takes nothing"}
        delivery.set_result(7)
        assert await waiting == 7
        assert health.ready

    health = Health(0)
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(scenario())
    health.close()
