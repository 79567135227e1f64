"""What needs no broker: configuration and the shape of messages."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from workers.messaging import Message, client_config
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


def test_the_source_of_a_message_names_its_producers_id_if_there_is_one() -> None:
    source = Message("t", 1, 2, None, None, {"ce_id": b"id"}).source()
    assert (source.topic, source.partition, source.offset, source.event_id) == ("t", 1, 2, "id")
    assert Message("t", 1, 2, None, None).source().event_id is None
    assert Message("t", 1, 2, None, None, {"ce_id": b"\xff"}).source().event_id == "\ufffd"
