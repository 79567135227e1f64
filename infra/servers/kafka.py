"""Apache Kafka in KRaft mode: one process a node, each broker and controller at once."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.servers import install
from infra.servers.process import Process, StartError, free_port

CLUSTER_ID = "aWNnLXNlcnZlcnMtMDAwMQ"
# Small and quick to start: a test's broker holds a few megabytes for a few minutes.
JVM = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")


@dataclass(frozen=True)
class Access:
    """What clients must show: SASL/SCRAM, over TLS where there is a keystore."""

    users: Mapping[str, str] = field(default_factory=dict)
    """Names and passwords; without any there is no SASL."""
    keystore: Path | None = None
    """PEM: the private key (PKCS 8), then the certificate chain."""

    @property
    def protocol(self) -> str:
        return ("SASL_" if self.users else "") + ("SSL" if self.keystore else "PLAINTEXT")


class Kafka(Process):
    """One node, formatted at its first start."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        advertised: str | None = None,
        node: int = 1,
        controllers: Mapping[int, int] | None = None,
        access: Access | None = None,
    ) -> None:
        """
        Args:
            folder: made if absent; holds the node's data, properties and log.
            port: of clients; 0: any that is free.
            advertised: host:port under which clients are told to find it, a proxy's for instance.
            controllers: port of each node's controller, all nodes of a cluster alike; None: this node alone.
            access: None: anybody, in plain text.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._jars = f"{install.kafka()}/*"
        self._access = access or Access()
        controllers = controllers or {node: free_port()}
        port = port or free_port()
        self._properties = folder / f"kafka-{node}.properties"
        self._properties.write_text(
            "\n".join(
                f"{name}={value}"
                for name, value in self._settings(
                    folder, node, port, advertised or f"127.0.0.1:{port}", controllers
                ).items()
            )
        )
        self.address = advertised or f"127.0.0.1:{port}"
        self._data = folder / f"kafka-{node}"
        command = ["java", *JVM, *LOGGING, "-cp", self._jars, "kafka.Kafka", str(self._properties)]
        super().__init__(f"kafka-{node}", command, folder, port)

    def _settings(
        self, folder: Path, node: int, port: int, advertised: str, controllers: Mapping[int, int]
    ) -> dict[str, object]:
        copies = min(3, len(controllers))
        access = self._access
        # Brokers among themselves have a listener of their own, so that what clients see can be cut off and locked.
        nodes = f"NODES://127.0.0.1:{free_port()}"
        settings: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": node,
            "controller.quorum.voters": ",".join(f"{each}@127.0.0.1:{at}" for each, at in controllers.items()),
            "listeners": f"CLIENTS://127.0.0.1:{port},{nodes},CONTROLLER://127.0.0.1:{controllers[node]}",
            "advertised.listeners": f"CLIENTS://{advertised},{nodes}",
            "listener.security.protocol.map": f"CLIENTS:{access.protocol},NODES:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "NODES",
            "log.dirs": folder / f"kafka-{node}",
            "default.replication.factor": copies,
            "min.insync.replicas": max(1, copies - 1),
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": 200,
            "group.min.session.timeout.ms": 1000,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "log.cleaner.dedupe.buffer.size": 4 * 2**20,
        }
        if access.users:
            scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            settings["sasl.enabled.mechanisms"] = "SCRAM-SHA-512"
            settings["listener.name.clients.scram-sha-512.sasl.jaas.config"] = scram
        if access.keystore is not None:
            settings["listener.name.clients.ssl.keystore.type"] = "PEM"
            settings["listener.name.clients.ssl.keystore.location"] = access.keystore
        return settings

    def start(self) -> None:
        if not (self._data / "meta.properties").exists():
            self._format()
        super().start()

    def _format(self) -> None:
        scram = [
            each
            for name, password in self._access.users.items()
            for each in ("--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]")
        ]
        command = ["java", *JVM, "-cp", self._jars, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID]
        try:
            done = subprocess.run(
                [*command, "-c", str(self._properties), *scram], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise StartError("kafka needs `java` (17 or newer), which is not on PATH") from None
        if done.returncode:
            raise StartError(f"kafka's storage cannot be formatted: {done.stderr.strip().splitlines()[-1:]}")
