"""Realignment at tiny size, random weights: promoted revisions in, verdicts and releases out, over Kafka and S3."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from icg.adapter import Adapter
from icg.alignment import rewards
from icg.alignment.student import USER_PATH
from icg.preference import Head
from infra.servers.process import free_port
from workers import probes
from workers.bootstrap import release_folder
from workers.exceptions import UserError
from workers.messaging import Producer
from workers.realignment import Aligner, Plan, run
from workers.records import Release
from workers.releases import Releases
from workers.settings import S3, Kafka, Settings
from workers.storage import ObjectStore

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, and six people who like one colour each."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for sides in range(3, 7):
        for colour in COLOURS:
            image = Image.new("RGB", (64, 64), "white")
            ImageDraw.Draw(image).regular_polygon((32, 32, 26), sides, fill=colour)
            image.save(folder / f"{sides}-{colour}.png")
            rows.append({"title": f"{sides} sides", "image": f"{sides}-{colour}.png"})
    (folder / "catalogue.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    rng = np.random.default_rng(0)
    chosen = [(user, 3 * rng.integers(4) + user % 3, rng.integers(1, 3)) for user in range(6) for _ in range(12)]
    table = [(user, row, row - row % 3 + (row + step) % 3) for user, row, step in chosen]
    user, liked, other = np.array(table, np.int64).T
    np.savez(folder / "choices.npz", user=user, chosen=liked, rejected=other)
    return folder


class World:
    """A released model whose preference head is promoted by hand."""

    def __init__(self, settings: Settings, model: Path, data: Path, folder: Path) -> None:
        self.settings = settings
        self.producer = Producer(settings.kafka, "test")
        self.releases = Releases(ObjectStore(settings.s3), settings.cache, self.producer)
        self.first = release_folder(self.releases, model, made_by="test")
        self.plan = Plan(
            data / "catalogue.jsonl", data / "choices.npz", folder / "align", judge=model, steps=3, batch=4, rate=1e-3,
            margin=10.0, watched=2, sampler_steps=2,
        )  # fmt: skip
        self.head = Head.load(model / "preference")
        self.said: list[str] = []

    def promote(self) -> Release:
        """Another head of the same space, as the learner releases one."""
        self.head.bias += 0.01
        self.head.save(self.settings.cache / "head")
        before = self.releases.current()
        assert before is not None
        files: dict[str, Path | bytes] = {path.name: path for path in (self.settings.cache / "head").iterdir()}
        parents = {"preference": before.parts["preference"]}
        revision = self.releases.put_part("preference", files, space=before.parts["space"], parents=parents)
        return self.releases.publish({"preference": revision}, "learned", "preference")

    def once(self, **changes: Any) -> None:
        run(self.settings, replace(self.plan, **changes), self.said.append, watch=False)

    def now(self) -> Release:
        release = self.releases.current()
        assert release is not None
        return release

    def verdicts(self) -> list[dict[str, Any]]:
        path = self.plan.folder / "verdicts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def world(kafka: Kafka, s3: S3, store: ObjectStore, tiny_model: Path, data: Path, tmp_path: Path) -> Iterator[World]:
    torch.set_num_threads(1)
    world = World(Settings(kafka=kafka, s3=s3, cache=tmp_path / "cache"), tiny_model, data, tmp_path)
    yield world
    world.producer.close()


def test_a_promoted_revision_becomes_an_adapter_or_is_refused_and_neither_is_tried_again(world: World) -> None:
    world.once()
    assert world.verdicts() == []  # the adapter was made with this head: nothing was promoted

    promoted = world.promote()
    world.once()
    (verdict,) = world.verdicts()
    assert verdict["outcome"] == "released"
    assert len(world.said) == 1
    assert f"release {world.now().number}" in world.said[0]
    release = world.now()
    assert release.number == promoted.number + 1
    assert release.parts == {**promoted.parts, "adapter": verdict["adapter"]}
    card = world.releases.card("adapter", verdict["adapter"])
    assert card.parents == {"adapter": promoted.parts["adapter"], "preference": promoted.parts["preference"]}
    old, new = (
        Adapter.from_pretrained(world.releases.fetch("adapter", each.parts["adapter"])) for each in (promoted, release)
    )
    assert new.config == old.config
    moved = {name for name, tensor in new.state_dict().items() if not torch.equal(tensor, old.state_dict()[name])}
    ways_in = {name for name in new.state_dict() if any(part in name for part in USER_PATH)}
    assert len(moved) > len(ways_in) / 2
    assert moved <= ways_in, "only the users' way in is trained: neutral covers stay"

    world.once()
    assert world.now() == release
    assert len(world.verdicts()) == 1

    promoted = world.promote()
    world.once(margin=-10.0)  # nothing is ten deviations better
    assert [verdict["outcome"] for verdict in world.verdicts()] == ["released", "refused"]
    assert "margin -10" in world.said[-1]
    assert world.now() == promoted
    world.once()  # by its name alone, whatever the margin is now
    assert world.now() == promoted
    assert len(world.verdicts()) == 2


def test_sigterm_keeps_the_checkpoint_and_a_restart_goes_on_with_the_parts_it_began_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted = world.promote()
    original, calls = rewards.loss, 0

    def ending(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(rewards, "loss", ending)
    world.once()
    assert world.said == [f"stopped; what was trained is kept in {world.plan.folder}"]
    folder = world.plan.folder / promoted.parts["preference"][:16]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 2
    world.once()
    assert calls == 3
    assert world.verdicts()[0]["outcome"] == "released"

    # While the next one trains another adapter is released by hand: it is not taken away again.
    world.promote()
    begun = world.now()

    def rolled_back(*arguments: Any) -> Any:
        if world.now() == begun:
            world.releases.publish({"adapter": promoted.parts["adapter"]}, "by hand", "adapter")
        return original(*arguments)

    monkeypatch.setattr(rewards, "loss", rolled_back)
    world.once()
    assert world.verdicts()[-1]["outcome"] == "overtaken"
    assert world.now().parts["adapter"] == promoted.parts["adapter"]


def test_watching_follows_promotions_and_tells_of_them_until_it_is_told_to_stop(world: World) -> None:
    port = free_port()
    address, stop, found = f"http://127.0.0.1:{port}", threading.Event(), []

    def promote_and_stop() -> None:
        while not probes.ready(address):
            if stop.wait(0.1):
                return
        before = probes.metric(address, "icg_align_verdicts_total")
        promoted = world.promote()
        while probes.metric(address, "icg_align_verdicts_total") == before:
            if stop.wait(0.1):
                return
        found.append(probes.metric(address, "icg_align_release") - promoted.number)
        os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=promote_and_stop)
    helper.start()
    try:
        settings = world.settings.model_copy(update={"health_port": port})
        run(settings, replace(world.plan, steps=1), world.said.append)
    finally:
        stop.set()
        helper.join()
    assert [verdict["outcome"] for verdict in world.verdicts()] == ["released"]
    assert found[0] in {0, 1}  # the promoted release, or the one with the adapter that it led to
    assert world.said[-1].startswith("stopped")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not probes.ready(address)


def test_an_unfinished_revision_gives_way_to_a_newer_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    aligner = Aligner(world.releases, world.plan, lambda call, what: call())
    first, second = world.promote(), None
    monkeypatch.setattr(rewards, "loss", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        aligner.step()
    second = world.promote()
    with pytest.raises(KeyboardInterrupt):
        aligner.step()
    (verdict,) = world.verdicts()
    assert verdict["preference"] == first.parts["preference"]
    assert verdict["outcome"] == "overtaken"
    assert second.parts["preference"][:12] in verdict["why"]


def test_data_that_do_not_fit_are_said_in_a_line(world: World) -> None:
    world.promote()
    with pytest.raises(UserError, match="no whole number of items"):
        world.once(batch=6)
    assert world.verdicts() == []


def _interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt
