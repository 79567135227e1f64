"""Batches fill by size or time; publishes before refreshes; suspects alone."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from workers.covers.batcher import Batcher, Waiting, pick


def waiting(job: str, rank: int = 0, alone: bool = False, since: float = 0.0) -> Waiting[str]:
    return Waiting(job, rank, alone, since)


def names(batch: list[Waiting[str]]) -> list[str]:
    return [each.job for each in batch]


def test_a_full_batch_goes_at_once_even_if_the_generator_is_busy() -> None:
    queue = [waiting("a"), waiting("b"), waiting("c")]
    batch, _ = pick(queue, 0.0, size=2, seconds=9.0, idle=False)
    assert names(batch) == ["a", "b"]


def test_while_the_generator_is_busy_a_batch_only_fills() -> None:
    assert pick([waiting("a")], 100.0, size=2, seconds=0.1, idle=False) == ([], None)


def test_an_idle_generator_waits_for_the_time_of_the_oldest() -> None:
    queue = [waiting("a", since=1.0), waiting("b", since=1.5)]
    assert pick(queue, 1.6, size=4, seconds=1.0, idle=True)[0] == []
    assert abs((pick(queue, 1.6, size=4, seconds=1.0, idle=True)[1] or 0) - 0.4) < 1e-9
    assert names(pick(queue, 2.0, size=4, seconds=1.0, idle=True)[0]) == ["a", "b"]


def test_refreshes_only_fill_what_publishes_leave() -> None:
    queue = [
        waiting("r1", 1, since=0.0),
        waiting("p1", since=2.0),
        waiting("r2", 1, since=1.0),
        waiting("p2", since=3.0),
    ]
    assert names(pick(queue, 9.0, size=3, seconds=0.0, idle=True)[0]) == ["p1", "p2", "r1"]


def test_a_suspect_goes_alone_once_it_is_first() -> None:
    queue = [waiting("a", since=0.0), waiting("suspect", alone=True, since=1.0), waiting("b", since=2.0)]
    assert names(pick(queue, 9.0, size=3, seconds=0.0, idle=True)[0]) == ["a", "b"]
    assert names(pick(queue[1:], 9.0, size=3, seconds=0.0, idle=True)[0]) == ["suspect"]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.floats(0, 10)), max_size=12),
    st.integers(1, 5),
    st.floats(0, 20),
    st.booleans(),
)
def test_a_batch_is_never_empty_too_large_or_mixed(
    jobs: list[tuple[int, bool, float]], size: int, now: float, idle: bool
) -> None:
    queue = [Waiting(number, rank, alone, since) for number, (rank, alone, since) in enumerate(jobs)]
    batch, wait = pick(queue, now, size=size, seconds=1.0, idle=idle)
    assert len(batch) <= size
    if any(each.alone for each in batch):
        assert len(batch) == 1
    if not batch and queue:
        assert wait is None or wait > 0
    if queue and idle and now >= 11:
        assert batch
    left = [each for each in queue if each not in batch and not each.alone]
    assert all(chosen.rank <= other.rank for chosen in batch for other in left)


def test_jobs_come_out_once_and_promoted_ones_first() -> None:
    async def scenario() -> list[list[str]]:
        batcher: Batcher[str] = Batcher(2, 0.01)
        batcher.add("refresh of x", rank=1)
        batcher.add("refresh of y", rank=1)
        batcher.add("publish of z")
        batcher.promote(lambda job: job == "refresh of y")
        assert batcher.waiting(0) == 2
        first = await batcher.take()
        second = await batcher.take()
        return [sorted(first), second]

    assert asyncio.run(scenario()) == [["publish of z", "refresh of y"], ["refresh of x"]]


def test_a_batch_fills_while_the_generator_is_busy_and_goes_when_it_is_free() -> None:
    async def scenario() -> list[str]:
        batcher: Batcher[str] = Batcher(3, 0.0)
        batcher.set_idle(False)
        taking = asyncio.create_task(batcher.take())
        batcher.add("a")
        await asyncio.sleep(0.02)
        assert not taking.done()
        batcher.add("b")
        batcher.set_idle(True)
        return await taking

    assert asyncio.run(scenario()) == ["a", "b"]


def test_a_generator_that_has_rested_begins_with_one_and_does_not_wait() -> None:
    async def scenario(seconds: float) -> list[list[str]]:
        batcher: Batcher[str] = Batcher(4, seconds)
        taking = asyncio.create_task(batcher.take())
        await asyncio.sleep(0)
        for job in "abcd":
            batcher.add(job)
        first = await taking
        batcher.set_idle(False)
        batcher.add("e")
        batcher.set_idle(True)
        return [first, await batcher.take()]

    assert asyncio.run(scenario(0)) == [["a"], ["b", "c", "d", "e"]]
    assert asyncio.run(scenario(0.01)) == [["a", "b", "c", "d"], ["e"]]
