"""`icg bootstrap` and `icg features apply`: what a new deployment needs once before its services have something to do.

Both may be run again: what is there stays. `icg demo`, Compose and Kubernetes use the same steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workers.exceptions import UserError
from workers.records import Part

if TYPE_CHECKING:
    from workers.records import Release
    from workers.releases import Releases
    from workers.settings import Settings

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PARTS: tuple[Part, ...] = ("base", "mllm", "space", "adapter", "rewards", "preference")
"""In this order: adapter and preference name the revision of their space."""
IN_SPACE = {"adapter", "preference"}

features = typer.Typer()


def add_to(app: typer.Typer) -> None:
    """Register the commands on the root of `icg`."""
    app.command()(bootstrap)
    app.add_typer(features, name="features", help="The feature store.", no_args_is_help=True)


@features.callback()
def _group() -> None:
    """The feature store."""


@features.command("apply")
def apply_command() -> None:
    """Bring Feast's registry and online store to what feature_repo/ says; to be run with each deployment."""
    from workers.feast_store import apply
    from workers.settings import settings
    from workers.storage import ObjectStore

    ObjectStore(settings().s3).ensure_bucket()  # where the registry of several machines lies
    apply(settings().feast)
    typer.echo("feature store: applied")


def bootstrap(
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the parts of a first release; default: icg-tiny is built.", exists=True, file_okay=False
        ),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(help="Parquet of user embeddings to import; default: the example's.", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Make the first release: model, users, segments. Where there is one already, only what it lacks."""
    from workers.messaging import Producer
    from workers.releases import Releases
    from workers.settings import settings
    from workers.storage import ObjectStore

    config = settings()
    store = ObjectStore(config.s3)
    store.ensure_bucket()
    producer = Producer(config.kafka, "bootstrap")
    try:
        releases = Releases(store, config.cache, producer)
        current = releases.current()
        if current is not None and model is not None:
            typer.echo(f"release {current.number} stays; {model} is not read: icg models release {model}", err=True)
        release = first_release(releases, model)
        if "segments" not in release.parts:
            release = people(config, users)
    finally:
        producer.close()
    typer.echo(f"release {release.number}: {', '.join(sorted(release.parts))}")


def first_release(
    releases: Releases,
    model: Path | None = None,
    *,
    made_by: str = "icg bootstrap",
    progress: Callable[[int], None] = lambda done: None,
) -> Release:
    """The release that there is, else one of a model folder, else one of icg-tiny as shipped.

    Args:
        progress: called with how many parts are stored.

    Raises:
        UserError: the folder lacks a part.
    """
    current = releases.current()
    if current is not None:
        return current
    if model is not None:
        return release_folder(releases, model, made_by=made_by, progress=progress)
    from icg.tiny import shipped

    with tempfile.TemporaryDirectory(prefix="icg-bootstrap-") as scratch:
        shipped.write(Path(scratch))
        return release_folder(releases, Path(scratch), made_by=made_by, progress=progress)


def release_folder(
    releases: Releases, folder: Path, *, made_by: str, progress: Callable[[int], None] = lambda done: None
) -> Release:
    """Store a folder's parts and release them.

    Args:
        folder: with `base/ mllm/ space/ adapter/ rewards/ preference/`.
        progress: called with how many parts are stored.

    Raises:
        UserError: a part is not there.
    """
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}")
    revisions: dict[Part, str] = {}
    for done, part in enumerate(PARTS, 1):
        space = revisions["space"] if part in IN_SPACE else None
        revisions[part] = releases.put_folder(part, folder / part, space=space, made_by=made_by)
        progress(done)
    return releases.publish(revisions, f"first release, by {made_by}", "base")


def people(config: Settings, users: Path | None = None) -> Release:
    """Import users and release their segments.

    Args:
        users: None: the example's, unless some are imported already.
    """
    from workers import embeddings
    from workers.releases import Releases
    from workers.segments import build
    from workers.storage import ObjectStore
    from workers.users import current, import_users

    store = ObjectStore(config.s3)
    space = current(Releases(store, config.cache)).parts["space"]
    if users is not None or embeddings.load(store, space) is None:
        import_users(config, users or EXAMPLES / "users.parquet")
    return build(config)
