"""`icg topics apply` and `check` on a real cluster."""

from __future__ import annotations

import time

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tests.zygote import Icg, Zygote
from workers.messaging import client_config
from workers.settings import Kafka, environment
from workers.topics import DAY_MS, Cluster, ensure_topics, load

pytestmark = pytest.mark.real("kafka", only=True)


@pytest.fixture
def icg(light_zygote: Zygote) -> Icg:
    return lambda kafka, *arguments: light_zygote.run(["topics", *arguments], environment(kafka=kafka))


def test_what_the_file_says_is_made_and_what_differs_is_said(own_kafka: Kafka, icg: Icg) -> None:
    # 4 partitions each, as `ensure_topics` was told; one topic kept for ever, one away.
    client = AdminClient(client_config(own_kafka))
    for future in client.delete_topics(["user-behavior", "dead-letters"]).values():
        future.result(20)
    while "dead-letters" in client.list_topics(timeout=20).topics:
        time.sleep(0.05)
    for future in client.create_topics([NewTopic("user-behavior", 4, 1, config={"retention.ms": "-1"})]).values():
        future.result(20)
    end = time.monotonic() + 60
    while True:  # the broker hears of both from its controller, a moment later
        checked = icg(own_kafka, "check")
        if "dead-letters: not there" in checked.stderr and "user-behavior: retention" in checked.stderr:
            break
        assert time.monotonic() < end, checked.stderr
    assert checked.returncode == 1
    said = checked.stderr.splitlines()
    assert "dead-letters: not there" in said
    assert "item-publish: 4 partitions, wanted 32" in said
    assert f"user-behavior: retention.ms is -1, wanted {7 * DAY_MS}" in said
    assert not [line for line in said if line.startswith(("user-erasure", "model-updates"))]

    applied = icg(own_kafka, "apply")
    assert (applied.returncode, applied.stdout) == (0, "8 topics are as topics.yaml has them\n")
    end = time.monotonic() + 20
    while (again := icg(own_kafka, "check")).returncode and time.monotonic() < end:
        pass
    assert again.returncode == 0, again.stderr
    found = Cluster(own_kafka).found()
    for name, topic in load().topics.items():
        assert found[name].partitions == topic.partitions
        assert topic.config.items() <= dict(found[name].config).items()
    ensure_topics(own_kafka, partitions=4)  # takes nothing away
    assert icg(own_kafka, "check").returncode == 0


def test_a_cluster_that_is_not_there_is_one_line(icg: Icg) -> None:
    checked = icg(Kafka(bootstrap_servers="127.0.0.1:9"), "check")
    assert checked.returncode == 1
    assert checked.stderr.startswith("icg: topics:")
    assert checked.stderr.count("\n") == 1


def test_the_embedded_broker_has_none_to_manage(icg: Icg) -> None:
    checked = icg(Kafka(embedded=True), "apply")
    assert (checked.returncode, checked.stderr.count("\n")) == (2, 1)
    assert "embedded broker" in checked.stderr
