"""`icg run people`: forgets those who ask (`user-erasure`), and keeps the segments where the people are.

One thread forgets, the main one looks after the segments. Run one of it. Two share the erasures, and of two that look
at the segments at the same moment one gives way; but each has a budget of its own, so together they may ask for twice
the covers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from workers.erased import Erased
from workers.exceptions import BadPart, Fault, Stopped, UserError
from workers.features import Features
from workers.forgetting import Forgetting
from workers.health import Health
from workers.messaging import Producer
from workers.people.erasure import forgetter
from workers.people.watch import Watch
from workers.reachable import Reachable
from workers.settings import Settings
from workers.storage import ObjectStore, retrying
from workers.topics import ensure_topics

log = logging.getLogger(__name__)

STUCK_SECONDS = 3600.0

T = TypeVar("T")


def run(settings: Settings, stop: threading.Event) -> int:
    """Run until told to stop. 0 after that, 1 where something ended it that a retry does not cure."""
    health = Health(settings.health_port, host=settings.health_host, service="people")
    try:
        return _run(settings, stop, health)
    except Stopped:
        return 0
    finally:
        health.close()


def _run(settings: Settings, stop: threading.Event, health: Health) -> int:
    servers = Reachable(health)

    def patiently(call: Callable[[], T], what: str) -> T:
        return retrying(call, what=what, stop=stop, on_retry=servers.fault)

    health.set("started", False, "starting")
    store = ObjectStore(settings.s3)
    patiently(lambda: ensure_topics(settings.kafka), "topics")
    features: Features = patiently(lambda: Features(settings.feast), "open the feature store")
    producer = Producer(settings.kafka, "people")
    erased = Erased(settings, store)
    erased.start()
    forgetting = Forgetting(settings, "people", forgetter(store, features), erased, stop, servers.fault)
    forgetting.start()
    watch = Watch(settings, store, features, producer, erased)
    quick = ObjectStore(settings.s3, timeout=2, attempts=1)
    servers.asks |= {"s3": quick.ping, "feast": features.ping, "kafka": producer.ping}
    servers.start()
    health.set("started", True)
    health.watch(STUCK_SECONDS, lambda: True)
    try:
        while not stop.is_set() and forgetting.failed is None:
            try:
                watch.look()
            except Fault as each:
                servers.fault(each)
            except (UserError, BadPart) as error:
                log.info("segments stay as they are: %s", error)
            health.progress()
            stop.wait(settings.segments.look_seconds)
    finally:
        stop.set()
        servers.stop()
        forgetting.join(5)
        erased.stop()
        producer.close()
        features.close()
    return 0 if forgetting.failed is None else 1
