"""An offset is acked only when everything before it on its partition is finished, whatever the order of finishing."""

from hypothesis import given
from hypothesis import strategies as st

from workers.covers.acks import Acks

TOPIC = "item-publish"


@given(st.data())
def test_acks_are_the_finished_prefix_of_each_partition(data: st.DataObject) -> None:
    lanes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3), label="messages of each partition")
    acks: Acks[int] = Acks()
    tickets = [
        acks.deliver((TOPIC, partition), offset, offset)
        for partition, most in enumerate(lanes)
        for offset in range(most)
    ]
    finished: set[tuple[int, int]] = set()
    acked: dict[int, list[int]] = {partition: [] for partition in range(len(lanes))}
    for ticket in data.draw(st.permutations(tickets), label="order of finishing"):
        partition = ticket.partition[1]
        finished.add((partition, ticket.offset))
        for ready in acks.finish(ticket):
            assert ready.partition == ticket.partition
            acked[partition].append(ready.value)
        prefix = 0
        while (partition, prefix) in finished:
            prefix += 1
        assert acked[partition] == list(range(prefix))
    assert acks.pending() == 0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True), st.integers(0, 5))
def test_what_was_taken_away_is_not_acked(finished_late: list[int], finished_before: int) -> None:
    acks: Acks[str] = Acks()
    old = [acks.deliver((TOPIC, 0), offset, f"old {offset}") for offset in range(5)]
    for ticket in old[:finished_before]:
        acks.finish(ticket)
    acks.drop([(TOPIC, 0)])
    again = [acks.deliver((TOPIC, 0), offset, f"new {offset}") for offset in range(5)]
    for offset in finished_late:
        assert acks.finish(old[offset]) == []
    assert [ready.value for ticket in again for ready in acks.finish(ticket)] == [f"new {n}" for n in range(5)]


def test_partitions_do_not_wait_for_each_other() -> None:
    acks: Acks[None] = Acks()
    slow = acks.deliver((TOPIC, 0), 7, None)
    fast = acks.deliver((TOPIC, 1), 7, None)
    assert acks.finish(fast) == [fast]
    assert acks.pending() == 1
    assert acks.finish(slow) == [slow]
