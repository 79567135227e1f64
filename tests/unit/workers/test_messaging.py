"""What needs no broker: configuration and the shape of messages."""

from __future__ import annotations

from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka import KafkaError
from pydantic import SecretStr

from workers.exceptions import MessagingFault, UserError
from workers.messaging import Consumer, Message, client_config
from workers.settings import Kafka


def test_plain_text_needs_no_secret() -> None:
    config = client_config(Kafka(bootstrap_servers="a:1,b:2"))
    assert config["bootstrap.servers"] == "a:1,b:2"
    assert config["security.protocol"] == "PLAINTEXT"
    assert not [name for name in config if name.startswith(("sasl", "ssl"))]


def test_what_librdkafka_refuses_is_a_line_for_a_person() -> None:
    with pytest.raises(UserError, match=r"Kafka's settings are refused: .*session\.timeout\.ms"):
        Consumer(Kafka(session_timeout_seconds=1e5), "group", ["topic"])


def test_sasl_over_tls(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.touch()
    config = client_config(
        Kafka(
            security_protocol="SASL_SSL",
            sasl_mechanism="SCRAM-SHA-256",
            sasl_username="icg",
            sasl_password=SecretStr("secret"),
            ssl_ca_location=authority,
        )
    )
    assert config["sasl.mechanism"] == "SCRAM-SHA-256"
    assert (config["sasl.username"], config["sasl.password"]) == ("icg", "secret")
    assert config["ssl.ca.location"] == str(authority)


def test_the_source_of_a_message_names_its_producers_id_if_there_is_one() -> None:
    source = Message("t", 1, 2, None, None, {"ce_id": b"id"}).source()
    assert (source.topic, source.partition, source.offset, source.event_id) == ("t", 1, 2, "id")
    assert Message("t", 1, 2, None, None).source().event_id is None
    assert Message("t", 1, 2, None, None, {"ce_id": b"\xff"}).source().event_id == "\ufffd"


def test_what_came_with_a_refusal_is_given_before_the_refusal() -> None:
    """The client has moved past it: nobody would read it again."""
    consumer = Consumer(Kafka(bootstrap_servers="127.0.0.1:9"), "group", ["t"])
    refusal = confluent_kafka.Message(error=KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    records = [confluent_kafka.Message(topic="t", partition=0, offset=offset, value=b"v") for offset in (3, 4)]
    try:
        found = consumer._without_errors([records[0], refusal, records[1]], 1)
        assert [record.offset() for record in found] == [3, 4]
        with pytest.raises(MessagingFault, match="group"):
            consumer.poll_raw(10, 0.0)
        assert consumer.poll_raw(10, 0.0) == []
        with pytest.raises(MessagingFault):
            consumer._without_errors([refusal], 0)
    finally:
        consumer.close()
