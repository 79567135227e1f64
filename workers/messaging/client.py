"""What every client of the broker has in common: its configuration, and whether the broker is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from workers.exceptions import MessagingFault, UserError
from workers.settings import Kafka

log = logging.getLogger(__name__)

Start = Literal["earliest", "latest"]
T = TypeVar("T")

REFUSALS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._FATAL,
}


def client_config(settings: Kafka) -> dict[str, Any]:
    """What every librdkafka client of ours has in common: address, security, time limits."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "security.protocol": settings.security_protocol,
        # A broker that hangs (a paused process, a dropped route) is noticed after 10 s, not after a minute.
        "socket.timeout.ms": 10_000,
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 2_000,
        "topic.metadata.refresh.interval.ms": 30_000,
        "log_level": 4,
    }
    if settings.embedded:
        config["broker.address.family"] = "v4"  # the mock cluster listens on 127.0.0.1 alone
    if settings.security_protocol.startswith("SASL"):
        config["sasl.mechanism"] = settings.sasl_mechanism
        config["sasl.username"] = settings.sasl_username or ""
        config["sasl.password"] = settings.sasl_password.get_secret_value() if settings.sasl_password else ""
    if settings.ssl_ca_location is not None:
        config["ssl.ca.location"] = str(settings.ssl_ca_location)
    return config


def connect(kind: Callable[..., T], config: dict[str, Any]) -> T:
    """A librdkafka client of this kind.

    Raises:
        UserError: librdkafka refuses the configuration.
    """
    try:
        return kind(config, logger=log)
    except KafkaException as error:
        raise UserError(f"Kafka's settings are refused: {error.args[0].str()}") from None


class Client:
    """The part that all clients share: is the broker there?"""

    _client: Any

    def ping(self, timeout: float = 2.0) -> bool:
        """Ask the broker for its metadata. Blocks for `timeout` seconds at most; for readiness checks."""
        try:
            return bool(self._client.list_topics(timeout=timeout).brokers)
        except KafkaException:
            return False


def some(client: Any, most: int, timeout: float, linger: float = 0.0) -> list[confluent_kafka.Message]:
    # `consume` alone waits for `most` records or the whole timeout, which would delay each event by it.
    first = client.poll(timeout)
    if first is None:
        return []
    return [first, *client.consume(most - 1, linger)] if most > 1 else [first]


def wait_for_broker(settings: Kafka, timeout: float) -> None:
    """Return once the broker answers.

    Raises:
        MessagingFault: it does not within `timeout` seconds.
    """
    client = connect(AdminClient, client_config(settings))
    until = time.monotonic() + timeout
    while True:
        try:
            client.list_topics(timeout=max(0.1, min(2.0, until - time.monotonic())))
            return
        except KafkaException as error:
            if time.monotonic() > until:
                raise MessagingFault(
                    f"no broker at {settings.bootstrap_servers} within {timeout:g} s: {error.args[0].str()}"
                ) from None
            time.sleep(0.1)
