"""One settings object, read once from the environment. Nobody else reads the environment.

`ICG_` is the prefix, then section and field: `ICG_KAFKA_BOOTSTRAP_SERVERS`, `ICG_COVERS_BATCH_ITEMS`.
`.env` is not read: what a process runs with is what its environment says. Feast's own store is chosen by `FEAST_…`.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Policy = Literal["segment", "softmax", "thompson"]
"""Which cover a person is shown; `workers.policies` says how each decides."""

CACHE = Path.home() / ".cache" / "icg"
ADDRESS = r"^https?://[^\s/]+"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kafka(Section):
    bootstrap_servers: str = Field("127.0.0.1:9092", min_length=1)
    embedded: bool = Field(False, description="The broker is librdkafka's mock cluster: 4 partitions, no admin API.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_location: FilePath | None = None
    # Short enough that the demo's restart of a worker is seen at once; production may raise both.
    session_timeout_seconds: float = Field(6.0, gt=0)
    heartbeat_seconds: float = Field(2.0, gt=0)


class S3(Section):
    endpoint: str | None = Field(None, pattern=ADDRESS, description="None: Amazon's own.")
    public_endpoint: str | None = Field(None, pattern=ADDRESS, description="Where readers reach it, if that differs.")
    bucket: str = Field("icg", pattern=r"^[a-zA-Z0-9._-]{1,255}$")
    region: str = "us-east-1"
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    ca_bundle: FilePath | None = None
    presign_seconds: int = Field(900, ge=1, le=7 * 24 * 3600)

    @model_validator(mode="after")
    def _whole(self) -> S3:
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("access_key and secret_key are given both, or neither")
        return self


class Feast(Section):
    repo: Path = Field(Path(__file__).parent.parent / "feature_repo", description="Folder of feature_store.yaml.")
    yaml: Path | None = Field(None, description="Another yaml; None: FEAST_FS_YAML_FILE_PATH, else the folder's.")


class References(Section):
    """From where, and how large, a reference image may be."""

    max_bytes: int = Field(10 * 1024 * 1024, ge=1)
    max_pixels: int = Field(40_000_000, ge=1)
    timeout_seconds: float = Field(10.0, gt=0)
    allowed_buckets: tuple[str, ...] = Field((), description="S3 buckets beside our own.")
    allowed_hosts: tuple[str, ...] = Field((), description="https hosts; empty: any public address.")


class Covers(Section):
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int = Field(2, ge=0, description="torch threads, which decide a cover's last bits; 0: torch's own choice.")
    steps: int | None = Field(
        None, ge=1, le=1000, description="None, as for the next four: what the adapter was tuned for."
    )
    branch: float | None = Field(None, ge=0, le=1, description="Share of the steps that an item's segments share.")
    guidance: float | None = Field(None, ge=1, le=100)
    guided: float | None = Field(None, ge=0, le=1, description="Share of the steps, the first, that are guided.")
    personalization: float | None = Field(None, ge=0, le=10, description="0: neutral, 1: as trained, more: bolder.")
    slots: int = Field(8, ge=1, le=4096, description="Padded size of every denoise and decode call.")
    batch_items: int = Field(4, ge=1)
    batch_seconds: float = Field(0, ge=0, description="How long an idle generator waits for a batch to fill.")
    width: int = Field(64, ge=8, le=16384)
    height: int = Field(64, ge=8, le=16384)
    gate: float = Field(0.5, ge=0, le=1, description="Quality under which a cover is not published.")
    stuck_seconds: float = Field(900.0, gt=0, description="No progress for so long ends the process.")
    upload_threads: int = Field(16, ge=1)


class Preferences(Section):
    batch_events: int = Field(10_000, ge=1)
    checkpoint_events: int = Field(50_000, ge=1)
    checkpoint_seconds: float = Field(10.0, gt=0)
    release_pairs: int = Field(200, ge=1, description="Pairs learned before a new preference revision is proposed.")
    holdout: float = Field(0.05, ge=0, lt=1)
    residual_norm: float = Field(
        0.5, ge=0, description="Bound on a user's learned residual, in units of the embedding norm."
    )
    join_seconds: float = Field(
        600.0, gt=0, description="Of event time: how late an event may be and a click be joined."
    )
    window_events: int = Field(2_000_000, ge=100_000, description="At most so many of a partition in that window.")
    push_seconds: float = Field(1.0, ge=1.0, description="Tastes are pushed to Feast at most so often.")
    release_margin: float = Field(0.02, description="Log loss by which a candidate may at most be worse, with 95 %.")
    order_margin: float = Field(0.05, description="The same for its AUC within an item,")
    calibration_margin: float = Field(0.1, description="and for its calibration error.")
    impressions_per_window: int = Field(60, ge=1, description="Of a user: further ones are compared with nothing.")
    pairs_per_hour: int = Field(20, ge=1, description="Of a user's own answers: at most so many pairs train.")
    pairs_per_second: float = Field(10.0, gt=0, description="Of event time: what a partition sends to the trainer.")
    taste_days: float = Field(30.0, gt=0, description="Half-life of a taste, in event time.")


class Audit(Section):
    batch_rows: int = Field(10_000, ge=1)
    batch_seconds: float = Field(5.0, gt=0)
    compact_files: int = Field(32, ge=2, description="Small files in a day's partition before they are compacted.")
    user_key: SecretStr = Field(SecretStr("icg-demo"), description="HMAC key that turns user_id into user_key.")


class Segments(Section):
    """Segments that follow people."""

    look_seconds: float = Field(300.0, gt=0, description="Between two looks at the people.")
    rebuild_seconds: float = Field(86400.0, ge=0, description="Age at which the segments are rebuilt; 0: never.")
    drift: float = Field(0.2, gt=0, description="Share of people nearer to another segment that rebuilds them at once.")
    groups: int = Field(8, ge=1, le=1000)
    k_min: int = Field(20, ge=1, description="Groups with fewer people merge into the nearest.")
    covers_per_hour: float = Field(2000.0, gt=0, description="Drawn for new and moved segments at most.")
    first_hours: float = Field(1.0, ge=0, description="Of drawing before a new set is released and people move.")


class Erasure(Section):
    """How people are forgotten. With the defaults it is over an hour after the event was read."""

    settle_seconds: float = Field(3600.0, ge=0, description="From the first pass over the stores to the second.")
    retention_days: float = Field(
        8.0, gt=0, description="For how long an erased person's events are dropped: longer than Kafka keeps any."
    )


class Api(Section):
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    token: SecretStr | None = Field(None, description="Bearer token for what writes; None: nothing writes by HTTP.")
    decision_key: SecretStr = Field(SecretStr("icg-demo"), description="HMAC key of decision tokens.")
    policy: Policy = Field("segment", description="Of a request that neither a surface nor the split decides.")
    surfaces: dict[str, Policy] = Field({}, description="Policies by the `surface` that a request names.")
    split: dict[Policy, float] = Field({}, description="A/B test: shares of users by policy; the rest: `policy`.")
    temperature: float = Field(0.1, gt=0, description="Of `softmax`, in the units of the preference score.")
    exploration: float = Field(0.1, ge=0, le=1, description="Share of decisions made uniformly among distinct covers.")

    @field_validator("split")
    @classmethod
    def _shares(cls, value: dict[Policy, float]) -> dict[Policy, float]:
        if any(share < 0 for share in value.values()) or sum(value.values()) > 1 + 1e-9:
            raise ValueError("shares are 0 to 1 each, and 1 at most together")
        return value


class Settings(BaseSettings):
    """Everything that a process of ours can be told from outside."""

    model_config = SettingsConfigDict(
        env_prefix="ICG_", env_nested_delimiter="_", env_nested_max_split=1, frozen=True, extra="forbid"
    )

    kafka: Kafka = Kafka()
    s3: S3 = S3()
    feast: Feast = Feast()
    references: References = References()
    covers: Covers = Covers()
    preferences: Preferences = Preferences()
    audit: Audit = Audit()
    api: Api = Api()
    erasure: Erasure = Erasure()
    segments: Segments = Segments()
    cache: Path = Field(CACHE, description="Local copies of model parts, fetched by revision.")
    health_port: int = Field(
        0, ge=0, le=65535, description="Port of /healthz, /readyz and /metrics of a worker; 0: none."
    )
    health_host: str = Field("127.0.0.1", description="In a container 0.0.0.0, so that its orchestrator reaches it.")
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    traces: Literal["none", "otlp", "console"] = Field(
        "none",
        validation_alias="OTEL_TRACES_EXPORTER",
        description="OpenTelemetry's own variable; its others (OTEL_…) are read by its SDK.",
    )

    @field_validator("cache")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()


@cache
def settings() -> Settings:
    """The settings of this process, read at the first call."""
    return Settings()


def trust_authority(file: Path) -> None:
    """For libraries that take a certificate authority by `SSL_CERT_FILE` alone; before their first connection."""
    os.environ["SSL_CERT_FILE"] = str(file.resolve())


def environment(**sections: BaseModel) -> dict[str, str]:
    """The environment for a child process: this one's, and the given sections spelled as variables.

    numpy's products get one thread unless said otherwise: ours are small, and OpenBLAS's threads spin while they wait
    for one another (torch has its own).
    """
    variables = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
    for name, section in sections.items():
        for field in section.model_fields_set:
            value = getattr(section, field)
            if value is None:
                continue
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            text = json.dumps(value) if isinstance(value, tuple | dict) else str(value)
            variables[f"ICG_{name}_{field}".upper()] = text
    return variables
