"""What the file of topics says, and what it must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.events import DEAD_LETTERS, EVENTS
from workers.exceptions import UserError
from workers.topics import DAY_MS, FILE, PERSONAL, TOPICS, Found, Topics, differences, load


@pytest.fixture
def wanted() -> Topics:
    return load()


def as_wanted(wanted: Topics, copies: int) -> dict[str, Found]:
    return {name: Found(topic.partitions, copies, topic.config) for name, topic in wanted.topics.items()}


def test_there_is_a_topic_for_each_event_and_for_dead_letters(wanted: Topics) -> None:
    assert set(wanted.topics) == set(TOPICS) == {event.topic for event in EVENTS} | {DEAD_LETTERS}


def test_topics_with_user_ids_are_kept_a_week_at_most(wanted: Topics) -> None:
    assert {"user-behavior", "user-erasure", "dead-letters"} <= set(PERSONAL)
    for name in PERSONAL:
        assert int(wanted.topics[name].config["retention.ms"]) <= 7 * DAY_MS


def test_no_topic_is_compacted(wanted: Topics) -> None:
    """An offset has to be a message that was there; compaction would make resumed readers skip silently."""
    assert {topic.config["cleanup.policy"] for topic in wanted.topics.values()} == {"delete"}


def test_everything_that_differs_is_said(wanted: Topics) -> None:
    found = as_wanted(wanted, copies=3)
    assert differences(wanted, found, brokers=5) == []
    del found["item-refresh"]
    found["item-publish"] = Found(4, 1, {"cleanup.policy": "compact", "retention.ms": "1"})
    assert differences(wanted, found, brokers=3) == [
        "item-publish: 4 partitions, wanted 32",
        "item-publish: 1 copies of a partition, wanted 3",
        "item-publish: cleanup.policy is compact, wanted delete",
        f"item-publish: retention.ms is 1, wanted {30 * DAY_MS}",
        "item-refresh: not there",
    ]


def test_more_partitions_and_fewer_brokers_are_fine(wanted: Topics) -> None:
    found = {name: Found(each.partitions + 1, 1, each.config) for name, each in as_wanted(wanted, 1).items()}
    assert differences(wanted, found, brokers=1) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("user-behavior: {partitions: 32, retention_days: 7}", "user-behavior: {partitions: 32, retention_days: 8}"),
         "user-behavior holds user ids and may be kept 7 days at most"),
        (("  dead-letters: {partitions: 8, retention_days: 7}\n", ""), "missing or unknown: dead-letters"),
        (("partitions: 32", "partitions: 0"), "partitions: Input should be greater than or equal to 1"),
        (("topics:", "topics: ["), "while parsing"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    file = tmp_path / "topics.yaml"
    text = FILE.read_text()
    assert change[0] in text
    file.write_text(text.replace(change[0], change[1], 1))
    with pytest.raises(UserError, match=reason) as caught:
        load(file)
    assert "\n" not in str(caught.value)
