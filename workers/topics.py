"""Topics as code: what `infra/kafka/topics.yaml` says, what a cluster has, and what differs.

`icg topics apply` creates and changes, `icg topics check` only looks; services create what is missing at their start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from workers.events import DEAD_LETTERS, EVENTS, UserBehavior, UserErasure, explain
from workers.exceptions import MessagingFault, UserError
from workers.settings import Kafka

log = logging.getLogger(__name__)

FILE = Path(__file__).parent.parent / "infra" / "kafka" / "topics.yaml"
TOPICS: tuple[str, ...] = (*(event.topic for event in EVENTS), DEAD_LETTERS)
DAY_MS = 24 * 3600 * 1000
PERSONAL = (UserBehavior.topic, UserErasure.topic, DEAD_LETTERS)
"""Topics with user ids, which are kept at most a week: dead letters too, they hold the original bytes."""
TIMEOUT = 20.0

app = typer.Typer()
File = Annotated[Path, typer.Option("--file", help="Which topics there should be.", exists=True, dir_okay=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Topic(_Strict):
    """One topic as it should be."""

    partitions: int = Field(ge=1)
    retention_days: float = Field(gt=0)

    @property
    def config(self) -> dict[str, str]:
        """The broker's settings of it."""
        return {"cleanup.policy": "delete", "retention.ms": str(int(self.retention_days * DAY_MS))}


class Topics(_Strict):
    """All topics of ours, and of how many brokers each partition wants a copy."""

    replication: int = Field(ge=1)
    topics: Mapping[str, Topic]

    @model_validator(mode="after")
    def _ours(self) -> Topics:
        if set(self.topics) != set(TOPICS):
            odd = sorted(set(self.topics) ^ set(TOPICS))
            raise ValueError(f"the topics have to be {', '.join(TOPICS)}; missing or unknown: {', '.join(odd)}")
        for name in PERSONAL:
            if self.topics[name].retention_days > 7:
                raise ValueError(f"{name} holds user ids and may be kept 7 days at most")
        return self


@dataclass(frozen=True, slots=True)
class Found:
    """One topic as it is on the cluster."""

    partitions: int
    replication: int
    config: Mapping[str, str]


def load(file: Path = FILE) -> Topics:
    """
    Raises:
        UserError: the file is not YAML, or not such a file; one line.
    """
    import yaml

    try:
        return Topics.model_validate(yaml.safe_load(file.read_text()))
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error)}") from None


def differences(wanted: Topics, found: Mapping[str, Found], brokers: int) -> list[str]:
    """What is not as it should be, a line each. More partitions than wanted are fine."""
    lines = []
    copies = min(wanted.replication, brokers)
    for name, topic in wanted.topics.items():
        there = found.get(name)
        if there is None:
            lines.append(f"{name}: not there")
            continue
        if there.partitions < topic.partitions:
            lines.append(f"{name}: {there.partitions} partitions, wanted {topic.partitions}")
        if there.replication < copies:
            lines.append(f"{name}: {there.replication} copies of a partition, wanted {copies}")
        for key, value in topic.config.items():
            if there.config.get(key) != value:
                lines.append(f"{name}: {key} is {there.config.get(key)}, wanted {value}")
    return lines


class Cluster:
    """The topics of a real cluster, through its admin API. Its calls raise `MessagingFault`."""

    def __init__(self, settings: Kafka) -> None:
        from confluent_kafka.admin import AdminClient

        from workers.messaging import client_config, connect

        self._client = connect(AdminClient, client_config(settings))

    def brokers(self) -> int:
        return len(self._metadata().brokers)

    def found(self) -> dict[str, Found]:
        """Those of ours that are there."""
        from confluent_kafka.admin import ConfigResource, ResourceType

        there = {name: topic for name, topic in self._metadata().topics.items() if name in TOPICS}
        if not there:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in there]
        described = self._client.describe_configs(resources, request_timeout=TIMEOUT)
        configs = {resource.name: _result(future, resource.name) for resource, future in described.items()}
        return {
            name: Found(
                partitions=len(topic.partitions),
                replication=min((len(each.replicas) for each in topic.partitions.values()), default=0),
                config={key: entry.value for key, entry in configs[name].items()},
            )
            for name, topic in there.items()
        }

    def create(self, names: Sequence[str], wanted: Topics, brokers: int, partitions: int | None = None) -> None:
        """Make topics that are not there; somebody else may be making them at the same moment."""
        from confluent_kafka import KafkaError, KafkaException
        from confluent_kafka.admin import NewTopic

        copies = min(wanted.replication, brokers)
        new = [
            NewTopic(
                name,
                min(partitions or wanted.topics[name].partitions, wanted.topics[name].partitions),
                copies,
                config=wanted.topics[name].config,
            )
            for name in names
        ]
        for name, future in (self._client.create_topics(new, operation_timeout=10) if new else {}).items():
            try:
                future.result(TIMEOUT)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise MessagingFault(f"topic {name}: {error.args[0].str()}") from None

    def change(self, wanted: Topics, found: Mapping[str, Found]) -> None:
        """Add partitions and set what is set otherwise, of topics that are there."""
        from confluent_kafka.admin import (
            AlterConfigOpType,
            ConfigEntry,
            ConfigResource,
            NewPartitions,
            ResourceType,
        )

        short = [
            NewPartitions(name, wanted.topics[name].partitions)
            for name, there in found.items()
            if there.partitions < wanted.topics[name].partitions
        ]
        for name, future in (self._client.create_partitions(short, operation_timeout=10) if short else {}).items():
            _result(future, name)
        resources = []
        for name, there in found.items():
            entries = [
                ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                for key, value in wanted.topics[name].config.items()
                if there.config.get(key) != value
            ]
            if entries:
                resources.append(ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries))
        for resource, future in (self._client.incremental_alter_configs(resources) if resources else {}).items():
            _result(future, resource.name)

    def touch(self) -> None:
        """On the embedded broker: it has no admin API, and being asked for a topic makes it."""
        for topic in TOPICS:
            self._metadata(topic)

    def _metadata(self, topic: str | None = None) -> Any:
        from confluent_kafka import KafkaException

        try:
            return self._client.list_topics(topic, timeout=10) if topic else self._client.list_topics(timeout=10)
        except KafkaException as error:
            raise MessagingFault(f"topics: {error.args[0].str()}") from None


def _result(future: Any, name: str) -> Any:
    from confluent_kafka import KafkaException

    try:
        return future.result(TIMEOUT)
    except KafkaException as error:
        raise MessagingFault(f"topic {name}: {error.args[0].str()}") from None


def ensure_topics(settings: Kafka, partitions: int | None = None) -> None:
    """Create the topics that are not there, as `topics.yaml` has them; those that are there keep what they have.

    Args:
        partitions: at most so many of each. The embedded broker gives every topic 4.

    Raises:
        MessagingFault: the broker does not answer, or refuses.
    """
    cluster = Cluster(settings)
    if settings.embedded:
        cluster.touch()
        return
    there = cluster.found()
    if absent := [topic for topic in TOPICS if topic not in there]:
        cluster.create(absent, load(), cluster.brokers(), partitions)


def apply(settings: Kafka, wanted: Topics) -> list[str]:
    """Create, add partitions, set configuration; what still differs then, a line each (copies are not moved).

    Raises:
        MessagingFault: the broker does not answer, or refuses.
    """
    cluster = Cluster(settings)
    brokers = cluster.brokers()
    found = cluster.found()
    cluster.change(wanted, found)
    cluster.create([name for name in wanted.topics if name not in found], wanted, brokers)
    until = time.monotonic() + 10
    while (left := differences(wanted, cluster.found(), brokers)) and time.monotonic() < until:
        time.sleep(0.2)  # brokers learn of a change a moment after the controller has confirmed it
    return left


def _real(settings: Kafka) -> Kafka:
    if settings.embedded:
        raise UserError("the embedded broker has no topics to manage: they are made when they are asked for")
    return settings


@app.command("apply")
def apply_command(file: File = FILE) -> None:
    """Create topics, add partitions, set retention, until the cluster has what the file says."""
    from workers.settings import settings

    wanted = load(file)
    if left := apply(_real(settings().kafka), wanted):
        _differ(left)
    typer.echo(f"{len(wanted.topics)} topics are as {file.name} has them")


@app.command("check")
def check_command(file: File = FILE) -> None:
    """Say what differs from the file, and end with status 1 if anything does. Changes nothing."""
    from workers.settings import settings

    wanted = load(file)
    cluster = Cluster(_real(settings().kafka))
    if lines := differences(wanted, cluster.found(), cluster.brokers()):
        _differ(lines)
    typer.echo(f"{len(wanted.topics)} topics are as {file.name} has them")


def _differ(lines: Sequence[str]) -> None:
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(1)
