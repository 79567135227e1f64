"""Liked-SFT, rewards and DPO: what their losses reach, mean and leave alone."""

import copy
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from icg.adapter import Adapter
from icg.alignment import dpo, liked, rewards
from icg.alignment.catalogue import Choices
from icg.alignment.material import Asked, Asking, Material
from icg.alignment.objective import Objective
from icg.alignment.people import People
from icg.alignment.stages import Stage
from icg.alignment.student import Student
from icg.alignment.watch import Watch, WatchConfig
from icg.sampling import SamplerConfig
from icg.training import Batch, Run, split
from icg.tuned import save_tuned

Make = Callable[..., Material]
CLIMB = rewards.RewardsConfig(users=2, steps=3, begin=4)


def batch_of(material: Material, people: People, rows: int = 4) -> Batch:
    """Pairs of rows are one item and noise for two people; the last row is neutral."""
    generator = torch.Generator().manual_seed(2)
    items = torch.arange(rows // 2) * 4
    asked = Asking(drop_reference=0, drop_title=0).draw(material.catalogue, items, generator)
    numbers = torch.arange(rows) % len(people)
    latents = torch.randn(2, rows, *material.base.latent_shape(*material.size), generator=generator)
    return {
        **{name: value.repeat_interleave(2) for name, value in asked.items()},
        **material.draw_noise(rows, generator, 0.25, 0.75),
        "seeds": torch.arange(rows) // 2,
        "people": numbers,
        "users": torch.from_numpy(people.whole)[numbers],
        "present": torch.arange(rows) < rows - 1,
        "best": latents[0],
        "worst": latents[1],
    }


def test_a_stage_draws_as_the_models_adapter_is_drawn_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    save_tuned(tmp_path / "adapter", SamplerConfig(steps=12, branch=0.7, guidance=2.0, guided=0.25))
    stage = Stage(tmp_path, tmp_path / "catalogue.jsonl", tmp_path / "out", size=32)
    assert stage.sampler() == SamplerConfig(steps=12, branch=0.7, guidance=2.0, guided=0.25, width=32, height=32)
    assert replace(stage, sampler_steps=5, branch=0.1).sampler() == replace(stage.sampler(), steps=5, branch=0.1)


def test_noise_is_drawn_for_the_part_of_the_way_that_is_asked_for(make_material: Make) -> None:
    material = make_material()
    visited = material.times.tolist()
    for start, end in ((0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (1.0, 1.0)):
        drawn = material.draw_noise(64, torch.Generator().manual_seed(0), start, end)["times"].tolist()
        places = [visited.index(time) / len(visited) for time in drawn]
        step = 1 / len(visited)
        assert min(places) > min(start, 1 - step) - step
        assert max(places) < max(end, start + step)


@pytest.fixture
def students(make_material: Make) -> tuple[Material, Student, Adapter]:
    """Material, a student with open gates, and the adapter that it was."""
    material = make_material(gates=0.5)
    start = copy.deepcopy(material.stack.adapter)
    return material, Student(material.stack.mllm, material.stack.adapter).training_adapter(), start


def losses(material: Material, start: Adapter, objective: Objective) -> dict[str, Callable[[Student, Batch], Tensor]]:
    return {
        "liked": lambda model, batch: liked.loss(model, start, material, batch, 2.0)["loss"],
        "rewards": lambda model, batch: rewards.loss(model, start, material, objective, batch, CLIMB)["loss"],
        "dpo": lambda model, batch: dpo.loss(model, start, material, batch, 500.0)["loss"],
    }


@pytest.mark.parametrize("stage", ["liked", "rewards", "dpo"])
def test_every_trained_tensor_has_a_gradient_and_micro_batches_do_not_change_it(
    students: tuple[Material, Student, Adapter], objective: Objective, people: People, stage: str
) -> None:
    material, student, start = students
    loss, batch = losses(material, start, objective)[stage], batch_of(material, people)

    def gradients(parts: list[Batch]) -> dict[str, Tensor]:
        student.zero_grad()
        for part in parts:
            (loss(student, part) / len(parts)).backward()
        return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}

    whole = gradients([batch])
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert {name for name, gradient in whole.items() if gradient.abs().sum() > 0} == trained
    assert {"adapter.user_in.weight", "adapter.blocks.0.gate"} <= trained
    assert "adapter.meta" not in trained
    parts = gradients(split(batch, 2))
    largest = max(gradient.abs().max().item() for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=2e-4 * largest, rtol=1e-3)


@pytest.mark.parametrize("stage", ["liked", "rewards", "dpo"])
def test_another_persons_vector_changes_the_loss(
    students: tuple[Material, Student, Adapter], objective: Objective, people: People, stage: str
) -> None:
    material, student, start = students
    loss, batch = losses(material, start, objective)[stage], batch_of(material, people)
    with torch.no_grad():
        student.adapter.project_out.bias.add_(0.1)  # else nothing has been learned yet, and dpo's margin is zero
        mine, again = loss(student, batch), loss(student, batch)
        swapped = loss(student, {**batch, "users": -batch["users"]})
    assert torch.equal(mine, again)
    assert not torch.equal(mine, swapped)


def test_meta_tokens_learn_too_if_asked(
    students: tuple[Material, Student, Adapter], objective: Objective, people: People
) -> None:
    material, student, start = students
    student.training_adapter(meta=True)
    losses(material, start, objective)["rewards"](student, batch_of(material, people)).backward()
    assert student.adapter.meta.grad is not None
    assert student.adapter.meta.grad.abs().sum() > 0


def test_rewards_train_the_way_in_of_users_alone_unless_asked_so_neutral_covers_stay(
    make_material: Make, people: People, objective: Objective, tmp_path: Path
) -> None:
    def climbed(name: str, config: rewards.RewardsConfig) -> tuple[Tensor, Tensor, Tensor]:
        material = make_material()
        asked = [Asked(title, None) for title in material.catalogue.titles[:3]]
        watch = Watch(material, objective, None, people, WatchConfig(items=1, users=2, real=4))
        run = Run(tmp_path / name, 3, 4, 1e-2, warmup=1, ema=0.0)
        user = torch.from_numpy(people.whole[:1]).expand(3, -1)
        here = torch.ones(3, dtype=torch.bool)
        adapter, features = material.stack.adapter, material.features(asked)
        with torch.no_grad():
            before = adapter(features)[0]
        student = rewards.train(material, people, objective, watch, config, run, name)
        with torch.no_grad():
            return before, student.adapter(features)[0], student.adapter(features, user, here)[0]

    before, neutral, own = climbed("alone", CLIMB)
    assert torch.equal(before, neutral)
    assert not torch.equal(before, own)
    before, neutral, _ = climbed("body", replace(CLIMB, body=True))
    assert not torch.equal(before, neutral)


def test_of_a_neutral_row_liked_wants_what_it_is(students: tuple[Material, Student, Adapter], people: People) -> None:
    material, student, start = students
    batch = {**batch_of(material, people), "present": torch.zeros(4, dtype=torch.bool)}
    with torch.no_grad():
        assert liked.loss(student, start, material, batch, 2.0)["loss"].item() < 1e-10


def test_dpo_begins_at_log_2_and_falls_towards_the_best(
    students: tuple[Material, Student, Adapter], people: People
) -> None:
    material, student, start = students
    batch = {**batch_of(material, people), "present": torch.ones(4, dtype=torch.bool)}
    first = dpo.loss(student, start, material, batch, 500.0)["loss"]
    assert first.item() == pytest.approx(np.log(2), abs=1e-5)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-3)
    for _ in range(15):
        optimizer.zero_grad()
        dpo.loss(student, start, material, batch, 500.0)["loss"].backward()
        optimizer.step()
    last = dpo.loss(student, start, material, batch, 500.0)
    assert last["loss"] < 0.9 * first
    assert last["margin"] > 0


def test_a_rollout_is_what_the_generator_draws(students: tuple[Material, Student, Adapter], people: People) -> None:
    material, student, _ = students
    batch = batch_of(material, people)
    features = material.features(material.asked(batch))
    cond = liked.conditioned(student, material, batch, features)
    latents = rewards.rollout(student, material, batch, features, cond, material.stack.sampler.steps)
    drawn = (material.base.decode(latents) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for row in range(4):
        item = material.item(material.asked(batch)[row])
        vector = batch["users"][row].numpy() if batch["present"][row] else None
        (cover,) = material.stack.generate(material.stack.encode([item]), [[vector]], [int(batch["seeds"][row])])[0]
        assert np.abs(np.asarray(cover).astype(int) - drawn[row]).max() <= 1


@pytest.fixture
def watch(make_material: Make, objective: Objective, people: People) -> Watch:
    return Watch(make_material(), objective, objective.taste, people, WatchConfig(items=2, users=3, real=4))


def test_what_is_watched(watch: Watch, make_material: Make) -> None:
    material = make_material(gates=0.0)
    shut = watch.figures(*watch.draw(Student(material.stack.mllm, material.stack.adapter)))
    assert shut["reward_gain"] == 0
    assert shut["reward_wins"] == 0.5
    assert shut["colours_own"] == shut["colours_neutral"]
    assert shut["diversity_between_users"] == pytest.approx(0, abs=1e-6)
    material.stack.adapter.set_gates(2.0)
    opened = watch.figures(*watch.draw(Student(material.stack.mllm, material.stack.adapter)))
    assert opened["reward_gain"] != 0
    assert opened["reward_gain"] == opened["judge_gain"]
    assert opened["reward_minus_judge"] == 0
    assert 0 <= opened["colours_own"] <= 1
    assert 0 <= opened["diversity_within_user"] <= 2


@contextmanager
def stopping_at(step: int) -> Iterator[Callable[[], None]]:
    """Calls until SIGTERM is sent."""
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGTERM)

    yield tick


def test_reward_training_resumes_to_the_bit_statistics_included(
    make_material: Make, objective: Objective, watch: Watch, people: People, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = Run(tmp_path / "whole", 6, 4, 5e-3, warmup=2, ema=0.5, log_steps=1)

    def train(run: Run) -> Student:
        return rewards.train(make_material(gates=0.5), people, objective, watch, replace(CLIMB, pull=0.1), run, "small")

    whole = train(run)
    statistics = objective.mean.clone()
    parts = replace(run, folder=tmp_path / "parts")
    original = rewards.loss
    with stopping_at(3) as tick:

        def ticking(*arguments: object) -> dict[str, Tensor]:
            tick()
            return original(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(rewards, "loss", ticking)
        with pytest.raises(KeyboardInterrupt):
            train(parts)
        assert not torch.equal(objective.mean, statistics)
        resumed = train(parts)
    assert all(
        torch.equal(one, other)
        for one, other in zip(whole.adapter.parameters(), resumed.adapter.parameters(), strict=True)
    )
    assert torch.equal(objective.mean, statistics)
    with pytest.raises(ValueError, match="no whole number of items with 2 people each"):
        train(replace(run, folder=tmp_path / "odd", batch=7))


def test_pairs_are_drawn_once_and_the_best_is_the_best(
    make_material: Make, people: People, choices: Choices, watch: Watch, tmp_path: Path
) -> None:
    seen: list[np.ndarray] = []

    def darkness(images: Tensor, person: int, title: str) -> np.ndarray:
        assert title in {"a disc", "a box", "a star", "a drop"}
        seen.append(-images.mean(dim=(1, 2, 3)).numpy())
        return seen[-1]

    config = dpo.DPOConfig(pairs=3, drawn=4)
    run = Run(tmp_path, 2, 4, 1e-3, warmup=1)
    material = make_material(gates=0.5)
    dpo.train(material, people, darkness, watch, config, run, "dark")
    assert [len(scores) for scores in seen] == [4, 4, 4]
    again = make_material(gates=0.5)
    dpo.train(again, people, darkness, watch, config, replace(run, steps=3), "dark")
    assert len(seen) == 3
    from safetensors.torch import load_file

    pairs = load_file(tmp_path / "pairs.safetensors")
    best, worst = (material.base.decode(pairs[name]).mean(dim=(1, 2, 3)) for name in ("best", "worst"))
    assert (best < worst).all()
