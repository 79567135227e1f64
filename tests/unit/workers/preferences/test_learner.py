from dataclasses import replace

import numpy as np
import pytest

from bench.taste_world import SPACE, TasteWorld, columns
from icg.preference import Head
from workers.preferences.checkpoint import fingerprint, of_learner, to_learner
from workers.preferences.learner import Learner
from workers.preferences.pairs import BATCH, Pairs, margins
from workers.preferences.trainer import Trainer

LIMITS = {"horizon": 600_000_000, "most": 2_000_000, "holdout": 0.05, "bound": 0.5}


def learn(learner: Learner, world: TasteWorld, values: list[bytes], size: int = 10_000) -> list[Pairs]:
    made, batch = [], columns(values, first=learner.offset)
    for start in range(0, len(batch), size):
        part = batch.span(start, min(start + size, len(batch)))
        made += learner.take(part, np.ones(len(part), np.float32), world)
    return made


def same(ours: list[Pairs], theirs: list[Pairs]) -> bool:
    names = [name for name in Pairs.__dataclass_fields__ if name not in {"sequence", "partition", "space"}]
    return len(ours) == len(theirs) and all(
        a.sequence == b.sequence and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_pairs_come_in_messages_of_one_size_and_carry_vectors() -> None:
    world = TasteWorld()
    learner = world.learner(partition=3)
    made = learn(learner, world, world.values(4000))
    assert [pairs.sequence for pairs in made] == list(range(len(made)))
    assert {(len(pairs), pairs.partition, pairs.space) for pairs in made} == {(BATCH, 3, SPACE)}
    counts = learner.window.counts
    assert counts.couples == BATCH * len(made) + len(learner.queue)
    assert np.allclose(np.linalg.norm(made[0].chosen, axis=1), 1, atol=1e-5)
    assert not (made[0].chosen == made[0].rejected).all(axis=1).any()


def test_how_the_stream_is_cut_shows_nowhere() -> None:
    seen = []
    for size in (13, 997, 100_000):
        world = TasteWorld()
        learner = world.learner()
        made = learn(learner, world, world.values(2500), size)
        seen.append((fingerprint(learner), made))
    assert len(seen[0][1]) > 5
    for mark, made in seen[1:]:
        assert mark == seen[0][0]
        assert same(made, seen[0][1])


def test_a_learner_from_a_checkpoint_goes_on_as_if_nothing_had_been() -> None:
    world = TasteWorld()
    values = world.values(2500)
    straight = world.learner()
    whole = learn(straight, world, values)
    random = np.random.default_rng(0)
    learner, made = world.learner(), []
    for start, end in zip(
        [0, *(cuts := sorted(random.integers(len(values), size=6).tolist()))], [*cuts, None], strict=True
    ):
        made += learn(learner, world, values[start:end])
        tensors, meta = of_learner(learner)
        tensors = {name: tensor.copy() for name, tensor in tensors.items()}
        learn(learner, world, world.values(50))  # what a killed process did after its checkpoint
        learner = to_learner(tensors, meta, world.head(), **LIMITS)
        learner.resume(world)
    assert fingerprint(learner) == fingerprint(straight)
    assert same(made, whole)


def test_a_duplicate_after_a_restart_is_one_still() -> None:
    world = TasteWorld()
    values = world.values(500)
    learner = world.learner()
    learn(learner, world, values)
    learner = to_learner(*of_learner(learner), world.head(), **LIMITS)
    before = learner.window.counts.couples
    learn(learner, world, values[-300:])
    assert learner.window.counts.couples == before
    assert learner.window.counts.duplicates == 300


def test_offsets_do_not_go_back() -> None:
    world = TasteWorld()
    learner = world.learner()
    batch = columns(world.values(10))
    learner.take(batch, np.ones(len(batch), np.float32), world)
    with pytest.raises(ValueError, match="offset 0 after"):
        learner.take(batch, np.ones(len(batch), np.float32), world)


def test_residuals_stay_within_their_bound_and_held_out_people_are_left_alone() -> None:
    world = TasteWorld(people_count=30, appeal=0.0)
    learner = world.learner(holdout=0.3, bound=0.25)
    made = learn(learner, world, world.values(6000))
    tastes = learner.tastes
    known = len(tastes.names)
    held = tastes.held_out[:known]
    assert 1 <= held.sum() < known
    size = np.linalg.norm(tastes.residual[:known], axis=1)
    assert size.max() <= 0.25
    assert size.max() > 0.249  # the bound was reached, so it is what held
    assert (size[held] == 0).all()
    assert (tastes.pairs[:known][held] == 0).all()
    flagged = np.concatenate([pairs.held_out for pairs in made])
    assert held.mean() < flagged.mean() < 1  # a pair is held out for either of its people


def test_tastes_move_towards_what_was_clicked() -> None:
    world = TasteWorld(people_count=40)
    learner = world.learner(holdout=0.0)
    learner.head = Head(SPACE, world.taste, np.zeros(64))  # a head that knows: tastes have to add to it
    made = learn(learner, world, world.values(20_000))
    late = made[len(made) // 2 :]
    users = np.concatenate([pairs.users for pairs in late])
    plain = world.vectors
    moved = np.abs(users[:, None] - plain[None]).sum(-1).min(1) > 1e-3
    assert moved.mean() > 0.9
    likes = [learner.liked(person) for person in range(len(learner.tastes.names))]
    assert sum(map(len, likes)) > 100
    item, cover = likes[0][0]
    assert cover in {world.cover(int(item[5:]), number) for number in range(world.styles)}


def test_a_missing_sidecar_is_waited_for_and_never_skipped() -> None:
    world = TasteWorld(missing=frozenset({(0, 1), (3, 2), (5, 0)}))
    learner = world.learner()
    made = learn(learner, world, world.values(6000))
    waiting = len(learner.pending)
    assert waiting > 0
    assert learner.retry(world) == 0
    assert len(learner.pending) == waiting
    learner = to_learner(*of_learner(learner), world.head(), **LIMITS)  # pending pairs are in the checkpoint
    learner.resume(world)
    world.missing = frozenset({(3, 2)})
    came = learner.retry(world)
    assert 0 < came < waiting
    world.missing = frozenset()
    assert came + learner.retry(world) == waiting
    made += learn(learner, world, world.values(500))
    assert learner.window.counts.couples == BATCH * len(made) + len(learner.queue)


def test_a_cover_of_another_space_is_refused_and_counted() -> None:
    world = TasteWorld(other_space=frozenset((item, 1) for item in range(24)))
    learner = world.learner()
    made = learn(learner, world, world.values(3000))
    assert learner.other_space > 0
    assert learner.window.counts.couples == BATCH * len(made) + len(learner.queue) + learner.other_space
    bad = world.covers_seen[:, 1]
    for pairs in made:
        assert not (pairs.chosen[:, None] == bad[None]).all(-1).any()


def test_a_new_space_gives_up_what_was_learned_in_the_old_one() -> None:
    world = TasteWorld()
    learner = world.learner()
    learn(learner, world, world.values(3000))
    assert np.abs(learner.tastes.residual).max() > 0
    learner.adopt(Head.start("f" * 64, 64), 2)
    assert np.abs(learner.tastes.residual).max() == 0
    assert (len(learner.queue), len(learner.pending), learner.release) == (0, 0, 2)
    made = learn(learner, world, world.values(3000))
    assert {pairs.space for pairs in made} == {"f" * 64}


def test_a_new_head_in_the_same_space_keeps_tastes() -> None:
    world = TasteWorld()
    learner = world.learner()
    learn(learner, world, world.values(3000))
    before = learner.tastes.residual.copy()
    learner.adopt(Head(SPACE, 2 * np.eye(64), np.zeros(64)), 2)
    assert np.array_equal(learner.tastes.residual, before)


def auc(head: Head, made: list[Pairs]) -> float:
    """Of pairs with a held-out person."""
    margin = np.concatenate([margins(head, p.users, p.chosen, p.others, p.rejected)[p.held_out] for p in made])
    return float((margin > 0).mean())


def trained(world: TasteWorld, pages: int) -> tuple[Trainer, list[Pairs]]:
    """Under people's imported vectors alone, so that whatever is learned is the head's."""
    learner = world.learner(holdout=0.1, bound=1e-9)
    trainer = Trainer.of(world.head())
    made = learn(learner, world, world.values(pages))
    for pairs in made:
        trainer.take(pairs, world.head())
    return trainer, made


def test_a_planted_taste_is_found() -> None:
    trainer, made = trained(TasteWorld(), 60_000)
    late = made[len(made) // 2 :]
    assert abs(auc(trainer.start, late) - 0.5) < 0.06
    assert auc(trainer.average, late) > 0.7


def test_placebo_random_clicks_leave_the_head_where_it_was() -> None:
    taught, _ = trained(TasteWorld(), 30_000)
    trainer, made = trained(TasteWorld(strength=0.0, appeal=-1.5), 30_000)
    assert trainer.pairs > taught.pairs
    moved = [np.linalg.norm(each.average.weight - each.start.weight) for each in (trainer, taught)]
    assert moved[0] < 0.15 * np.linalg.norm(trainer.start.weight)
    assert abs(auc(trainer.average, made[len(made) // 2 :]) - 0.5) < 0.06


def test_cuts_are_made_at_offsets_however_the_stream_comes() -> None:
    world = TasteWorld()
    batch = columns(world.values(3000))
    places = []
    for size in (17, 1000, 10_000):
        learner, found = replace(world.learner()), []
        for start in range(0, len(batch), size):
            rest = batch.span(start, min(start + size, len(batch)))
            while (row := learner.cut(rest, 1000, 10_000_000)) is not None:
                learner.take(rest.span(0, row), np.ones(row, np.float32), world)
                found.append(int(rest.offset[row]))
                rest = rest.span(row, len(rest))
            learner.take(rest, np.ones(len(rest), np.float32), world)
        places.append(found)
    assert {1000, 2000, 3000} <= set(places[0])
    assert places[1] == places[0]
    assert places[2] == places[0]
