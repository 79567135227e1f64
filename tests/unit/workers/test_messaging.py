"""What needs no broker: configuration and the shape of messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from workers.events import DEAD_LETTERS, EVENTS
from workers.messaging import TOPICS, WEEK_MS, Message, client_config, topic_config
from workers.settings import Kafka


def test_plain_text_needs_no_secret() -> None:
    config = client_config(Kafka(bootstrap_servers="a:1,b:2"))
    assert config["bootstrap.servers"] == "a:1,b:2"
    assert config["security.protocol"] == "PLAINTEXT"
    assert not [name for name in config if name.startswith(("sasl", "ssl"))]


def test_sasl_over_tls() -> None:
    config = client_config(
        Kafka(
            security_protocol="SASL_SSL",
            sasl_mechanism="SCRAM-SHA-256",
            sasl_username="icg",
            sasl_password=SecretStr("secret"),
            ssl_ca_location=Path("/ca.pem"),
        )
    )
    assert config["sasl.mechanism"] == "SCRAM-SHA-256"
    assert (config["sasl.username"], config["sasl.password"]) == ("icg", "secret")
    assert config["ssl.ca.location"] == "/ca.pem"


def test_there_is_a_topic_for_each_event_and_for_dead_letters() -> None:
    assert set(TOPICS) == {event.topic for event in EVENTS} | {DEAD_LETTERS}
    assert len(TOPICS) == len(set(TOPICS))


@pytest.mark.parametrize("topic", ["user-behavior", "user-erasure", "dead-letters"])
def test_topics_with_user_ids_are_kept_a_week_at_most(topic: str) -> None:
    assert int(topic_config(topic)["retention.ms"]) <= 7 * 24 * 3600 * 1000 == WEEK_MS


def test_no_topic_is_compacted() -> None:
    """An offset has to be a message that was there; compaction would make resumed readers skip silently."""
    assert {topic_config(topic)["cleanup.policy"] for topic in TOPICS} == {"delete"}


def test_the_source_of_a_message_names_its_producers_id_if_there_is_one() -> None:
    source = Message("t", 1, 2, None, None, {"ce_id": b"id"}).source()
    assert (source.topic, source.partition, source.offset, source.event_id) == ("t", 1, 2, "id")
    assert Message("t", 1, 2, None, None).source().event_id is None
    assert Message("t", 1, 2, None, None, {"ce_id": b"\xff"}).source().event_id == "\ufffd"
