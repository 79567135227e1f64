"""`icg users`: user embeddings from a recommender."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workers.exceptions import UserError

if TYPE_CHECKING:
    from workers.embeddings import Map, Users
    from workers.records import Release
    from workers.releases import Releases
    from workers.settings import Settings

app = typer.Typer()

BATCH = 1_000
"""Rows of one push to Feast: SQLite is held for a short time only."""


@app.callback()
def _group() -> None:
    """User embeddings from a recommender."""


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="Parquet with the columns user_id and embedding (a list of numbers).")],
    fit_map: Annotated[
        bool, typer.Option("--fit-map", help="Fit a map from this file's dimension into the space, and release it.")
    ] = False,
) -> None:
    """Import user embeddings; users who are there already get the new vector."""
    from workers.settings import settings

    count = import_users(settings(), file, fit_map=fit_map)
    typer.echo(f"imported {count} user{'' if count == 1 else 's'}; `icg segments build` groups them")


@app.command("erase")
def erase_command(
    user_id: Annotated[str, typer.Argument(help="Whom to forget.")],
    wait: Annotated[bool, typer.Option("--wait", help="Until the services have written their receipts.")] = False,
) -> None:
    """Forget a person: everywhere within two passes, an hour apart by default (ICG_ERASURE_SETTLE_SECONDS)."""
    from workers.settings import settings

    partition, offset = erase(settings(), user_id)
    typer.echo(f"asked: user-erasure, partition {partition}, offset {offset}; receipts will be at")
    for key in receipts(partition, offset):
        typer.echo(f"  s3://{settings().s3.bucket}/{key}")
    if wait:
        wait_for_receipts(settings(), partition, offset)
        typer.echo("forgotten")


def erase(config: Settings, user_id: str) -> tuple[int, int]:
    """Ask for it; partition and offset of the event.

    Raises:
        UserError: no id.
        MessagingFault: the broker does not take it.
    """
    from pydantic import ValidationError

    from workers.events import UserErasure
    from workers.exceptions import MessagingFault
    from workers.messaging import Producer, wait_for_broker

    try:
        event = UserErasure(user_id=user_id)
    except ValidationError:
        raise UserError("that is no user id: 1 to 128 of A-Z a-z 0-9 . _ ~ -") from None
    wait_for_broker(config.kafka, 10.0)
    producer = Producer(config.kafka, "users")
    try:
        return producer.send_event(event).result(30)
    except TimeoutError:
        raise MessagingFault("the broker did not take the event within 30 s") from None
    finally:
        producer.close()


SERVICES = ("people", "audit", "preferences")
"""That keep something of people, and write a receipt once they do not."""


def receipts(partition: int, offset: int) -> list[str]:
    """Where the services that keep something of people say that they are done."""
    return [f"erasure/receipts/{partition}-{offset}.{service}.json" for service in SERVICES]


def wait_for_receipts(config: Settings, partition: int, offset: int) -> None:
    """Until all are there; for as long as that takes."""
    import time

    from workers.storage import ObjectStore

    store = ObjectStore(config.s3)
    while not all(store.exists(key) for key in receipts(partition, offset)):
        time.sleep(1)


def import_users(config: Settings, file: Path, *, fit_map: bool = False) -> int:
    """Import a Parquet file into the table in S3 and into Feast; how many users were taken in.

    Those who asked to be forgotten within the last days (`erasure.retention_days`) are left out.

    Args:
        fit_map: fit a PCA-whitening map on this file and release it as part `map`; needed where the file's dimension
            is not the space's and no map is released.

    Raises:
        UserError: the file is wrong (row and column are named), does not fit the space, or nothing is released.
    """
    from workers import embeddings
    from workers.erased import Erased
    from workers.features import Features
    from workers.messaging import Producer
    from workers.releases import Releases
    from workers.storage import ObjectStore

    users = embeddings.read_file(file)
    store = ObjectStore(config.s3)
    erased = Erased(config, store)
    erased.poll()
    users = users.take([row for row, user in enumerate(users.ids) if not erased.has(user)])
    if not users.ids:
        raise UserError(f"{file.name}: everybody in it has asked to be forgotten")
    releases = Releases(store, config.cache)
    release = current(releases)
    if fit_map:
        producer = Producer(config.kafka, "users")
        try:
            mapping: Map | None = _release_map(Releases(store, config.cache, producer), release, users)
        finally:
            producer.close()
    else:
        mapping = _released_map(releases, release, users, file.name)
    mapped = embeddings.Users(users.ids, mapping(users.vectors)) if mapping else users

    space = release.parts["space"]
    features = Features(config.feast)
    try:
        for at in range(0, len(mapped.ids), BATCH):
            part = slice(at, at + BATCH)
            rows = zip(mapped.ids[part], mapped.vectors[part], strict=True)
            features.push(
                "user_embedding", [{"user_id": user, "embedding": vector, "space": space} for user, vector in rows]
            )
    finally:
        features.close()
    # Last: who is in the table is in Feast too, so an import that broke off is known by what the table lacks.
    embeddings.add(store, space, mapped)
    return len(users.ids)


def current(releases: Releases) -> Release:
    """The current release.

    Raises:
        UserError: there is none, or it has no space.
    """
    release = releases.current()
    if release is None or "space" not in release.parts or "preference" not in release.parts:
        raise UserError("nothing is released yet that has a space: users' vectors would mean nothing")
    return release


def dimension(releases: Releases, release: Release) -> int:
    """Of the vectors in the release's space, as its preference model says."""
    folder = releases.fetch("preference", release.parts["preference"])
    return int(json.loads((folder / "config.json").read_text())["dimension"])


def _released_map(releases: Releases, release: Release, users: Users, name: str) -> Map | None:
    """The map of the release; None where there is none and none is needed."""
    from workers.embeddings import Map

    has = users.vectors.shape[1]
    if "map" in release.parts:
        folder = releases.fetch("map", release.parts["map"])
        mapping = Map.decode((folder / "map.safetensors").read_bytes())
        if mapping.takes != has:
            raise UserError(f"{name}: embeddings of {has} numbers, but the released map takes {mapping.takes}")
        return mapping
    wants = dimension(releases, release)
    if has != wants:
        raise UserError(f"{name}: embeddings of {has} numbers, but the space has {wants}; --fit-map fits a map")
    return None


def _release_map(releases: Releases, release: Release, users: Users) -> Map:
    """Fit a map and release it."""
    from workers.embeddings import Map

    mapping = Map.fit(users.vectors, dimension(releases, release))
    revision = releases.put_part(
        "map",
        {"map.safetensors": mapping.encode()},
        space=release.parts["space"],
        made_by="icg users import --fit-map",
        metrics={"users": float(len(users.ids)), "takes": float(mapping.takes)},
    )
    released = release.parts.get("map")
    if released is None:
        releases.publish({"map": revision}, "a map for imported user embeddings", "map")
    elif released != revision:
        # Vectors that were imported through the old map would lie among those of the new one and mean something else.
        raise UserError("a map fitted on other users is released already; import without --fit-map uses it")
    return mapping
