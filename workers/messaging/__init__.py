"""Kafka through confluent-kafka: produce, consume in a group, follow without one.

Left out on purpose: transactions (an event's effects are idempotent instead), schema registries (`workers.events` is
the schema) and asyncio (`workers.covers` consumes with Faust).
"""

from workers.messaging.client import client_config, connect, wait_for_broker
from workers.messaging.consumer import Consumer
from workers.messaging.follower import Follower
from workers.messaging.message import Message
from workers.messaging.producer import MOST_BYTES, Producer

__all__ = ["MOST_BYTES", "Consumer", "Follower", "Message", "Producer", "client_config", "connect", "wait_for_broker"]
