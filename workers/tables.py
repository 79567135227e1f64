"""Delta Lake tables in object storage: how a process opens one, and what its faults are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from workers.exceptions import StorageFault
from workers.settings import S3, trust_authority


def storage_options(settings: S3) -> dict[str, str]:
    """The S3 settings as delta-rs spells them. Its patience is short: `storage.retrying` waits instead."""
    options = {
        "AWS_REGION": settings.region,
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false" if settings.endpoint else "true",
        "timeout": "15s",
        "connect_timeout": "3s",
        "max_retries": "2",
        "retry_timeout": "15s",
    }
    if settings.endpoint:
        options["AWS_ENDPOINT_URL"] = settings.endpoint
        options["AWS_ALLOW_HTTP"] = str(settings.endpoint.startswith("http://")).lower()
    if settings.access_key and settings.secret_key:
        options["AWS_ACCESS_KEY_ID"] = settings.access_key.get_secret_value()
        options["AWS_SECRET_ACCESS_KEY"] = settings.secret_key.get_secret_value()
    if settings.ca_bundle:
        trust_authority(settings.ca_bundle)  # the only way there is: delta-io/delta-rs#4246
    return options


def table_uri(settings: S3, name: str) -> str:
    return f"s3://{settings.bucket}/audit/{name}"


def open_table(settings: S3, name: str) -> DeltaTable | None:
    """The table as it is now, None if it is not there yet.

    Raises:
        StorageFault: S3 does not answer.
    """
    with faults(f"audit/{name}"):
        try:
            return DeltaTable(table_uri(settings, name), storage_options=storage_options(settings))
        except TableNotFoundError:
            return None


@contextmanager
def faults(what: str) -> Iterator[None]:
    """What delta-rs and its object store raise when S3 fails, or a commit lost a race: a retry cures both."""
    try:
        yield
    except (DeltaError, OSError) as error:
        raise StorageFault(f"{what}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
