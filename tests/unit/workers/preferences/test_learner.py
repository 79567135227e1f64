import json
from dataclasses import replace

import numpy as np
import pytest

from bench.taste_world import KEY, SPACE, TasteWorld, columns
from icg.preference import Head
from workers.preferences.checkpoint import fingerprint, of_learner, to_learner
from workers.preferences.learner import Learner
from workers.preferences.pairs import BATCH, Pairs, Rows, margins_of
from workers.preferences.propensity import Tokens, Weights
from workers.preferences.tastes import Limits
from workers.preferences.trainer import Trainer

LIMITS = {"horizon": 600_000_000, "most": 2_000_000, "shown": 10**6, "limits": Limits(0.05, 0.5, 10**6), "rate": 1e6}


def learn(learner: Learner, world: TasteWorld, values: list[bytes], size: int = 10_000) -> list[Pairs]:
    made, batch = [], columns(values, first=learner.offset)
    for start in range(0, len(batch), size):
        part = batch.span(start, min(start + size, len(batch)))
        made += learner.take(part, TOKENS.weights(part), world)
    return made


TOKENS = Tokens([KEY])


def same(ours: list[Pairs], theirs: list[Pairs]) -> bool:
    def rows(pairs: Pairs) -> list[bytes]:
        return [column.tobytes() for column in pairs.rows.columns().values()]

    return len(ours) == len(theirs) and all(
        (a.sequence, a.forget) == (b.sequence, b.forget) and rows(a) == rows(b)
        for a, b in zip(ours, theirs, strict=True)
    )


def together(made: list[Pairs]) -> Rows:
    return sum((pairs.rows for pairs in made[1:]), made[0].rows)


def couples(learner: Learner, made: list[Pairs]) -> int:
    """What became of them, where all go to the trainer."""
    waiting = len(learner.queue) + len(learner.outgoing) + len(learner.pending)
    return sum(map(len, made)) + waiting + learner.other_space + learner.capped


def test_pairs_come_in_messages_of_one_size_and_carry_vectors() -> None:
    world = TasteWorld()
    learner = world.learner(partition=3)
    made = learn(learner, world, world.values(4000))
    assert [pairs.sequence for pairs in made] == list(range(len(made)))
    assert {(len(pairs), pairs.partition, pairs.space) for pairs in made} == {(BATCH, 3, SPACE)}
    assert learner.window.counts.couples == couples(learner, made)
    assert len(made) > 5
    rows = together(made)
    assert np.allclose(np.linalg.norm(rows.chosen + rows.items, axis=1), 1, atol=1e-5)


def test_covers_are_less_the_mean_of_their_items_covers() -> None:
    world = TasteWorld()
    learner = world.learner()
    rows = together(learn(learner, world, world.values(20_000)))
    means = world.covers_seen.mean(axis=1)
    late = rows.items[len(rows) // 2 :]
    # Most are the mean of all covers of some item; of some items one was never part of a pair.
    assert np.median(np.abs(late[:, None] - means[None]).max(-1).min(1)) < 1e-5
    # Weighted by what was logged every cover is as likely: what people of a segment saw has mean 0.
    listed = learner.tastes.names.listed
    segment = np.array([world.segment[int(listed[number].partition("-")[2])] for number in rows.losers.tolist()])
    for each in range(world.styles - 1):
        mine = np.flatnonzero(segment == each)
        plain = np.average(rows.rejected[mine], axis=0)
        weighted = np.average(rows.rejected[mine], axis=0, weights=rows.rejected_weights[mine])
        assert np.linalg.norm(weighted) < 0.35 < 0.5 < np.linalg.norm(plain)


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
    learner.take(batch, TOKENS.weights(batch), world)
    with pytest.raises(ValueError, match="offset 0 after"):
        learner.take(batch, TOKENS.weights(batch), world)


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
    rows = together(made)
    assert held.mean() < (rows.held_out > 0).mean() < 1  # a pair is held out for either of its people
    assert (held[rows.winners] == (rows.held_out == 1)).all()
    assert held[rows.losers[rows.held_out == 2]].all()


def test_tastes_move_towards_what_was_clicked() -> None:
    world = TasteWorld(people_count=40)
    learner = world.learner(holdout=0.0)
    learner.head = Head(SPACE, world.taste, np.zeros(64))  # a head that knows: tastes have to add to it
    made = learn(learner, world, world.values(20_000))
    late = made[len(made) // 2 :]
    users = together(late).users
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
    assert len(learner.pending) == 0
    assert learner.window.counts.couples == couples(learner, made)


def test_a_cover_of_another_space_is_refused_and_counted() -> None:
    world = TasteWorld(other_space=frozenset((item, 1) for item in range(24)))
    learner = world.learner()
    made = learn(learner, world, world.values(3000))
    assert learner.other_space > 0
    assert learner.window.counts.couples == couples(learner, made)
    rows, bad = together(made), world.covers_seen[:, 1]
    assert np.abs((rows.chosen + rows.items)[:, None] - bad[None]).max(-1).min() > 1e-3


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
    """Of pairs with a held-out person, as of a uniform choice."""
    rows = together(made)
    rows = rows.take(np.flatnonzero((rows.held_out > 0) & (rows.chosen != rows.rejected).any(1)))
    margin = margins_of(head, rows)
    return float(np.average(margin > 0, weights=np.minimum(rows.chosen_weights * rows.rejected_weights, 10)))


def trained(world: TasteWorld, pages: int, start: Head | None = None) -> tuple[Trainer, list[Pairs], Learner]:
    """Under people's imported vectors alone, so that whatever is learned is the head's."""
    learner = world.learner(holdout=0.1, bound=1e-9)
    trainer = Trainer.of(start or world.head())
    made = learn(learner, world, world.values(pages))
    for pairs in made:
        trainer.take(pairs, world.head())
    return trainer, made, learner


def test_a_planted_taste_is_found() -> None:
    trainer, made, _ = trained(TasteWorld(), 60_000)
    late = made[len(made) // 2 :]
    assert auc(trainer.start, late) < 0.55
    assert auc(trainer.average, late) > 0.58


def own_cover(head: Head, world: TasteWorld) -> float:
    """By how much people's score of their own segment's cover is above that of the item's others, in nats: root mean
    square over segments."""
    covers = world.covers_seen - world.covers_seen.mean(axis=1, keepdims=True)
    pulls = world.vectors @ head.weight + head.bias
    segments = range(world.styles - 1)
    means = [(pulls[world.segment == each] @ covers[:, each].T).mean() for each in segments]
    return float(np.sqrt(np.mean(np.square(means))))


def test_placebo_a_taste_for_items_alone_leaves_the_covers_term_at_zero() -> None:
    # People of some segments like the items more, and so click more, mostly on their own segment's cover.
    nothing = Head(SPACE, np.zeros((64, 64)), np.zeros(64))
    world = TasteWorld(strength=0.0, fondness=10.0, appeal=-1.5)
    trainer, _, learner = trained(world, 50_000, nothing)
    assert learner.window.counts.couples > 5000
    assert own_cover(trainer.average, world) < 0.15  # noise is 0.07; a planted taste of the same strength 0.4
    assert np.abs(trainer.interest).max() > 0.05  # the item's term has it instead

    # The bound holds off a learner that takes no notice of propensities,
    world = TasteWorld(strength=0.0, fondness=10.0, appeal=-1.5)
    careless, batch = world.learner(holdout=0.1, bound=1e-9), columns(world.values(50_000))
    careless.head, wrong = nothing, Trainer.of(nothing)
    for pairs in careless.take(batch, Weights.even(len(batch)), world):
        wrong.take(pairs, nothing)
    assert own_cover(wrong.average, world) > 0.2
    # and one that does not centre covers: it would take what an item is about for a taste in covers.
    rows = [pairs.rows for pairs in learn(trained_on(nothing, world), world, world.values(20_000))]
    plain, centred = Trainer.of(nothing), Trainer.of(nothing)
    for number, each in enumerate(rows):
        centred.take(Pairs(number, 0, SPACE, each), nothing)
        none = np.zeros_like(each.items)
        whole = replace(each, chosen=each.chosen + each.items, rejected=each.rejected + each.items, items=none)
        plain.take(Pairs(number, 0, SPACE, whole), nothing)
    about = world.covers_seen.mean(axis=1)
    spread = [float((world.vectors @ each.average.weight @ about.T).std()) for each in (centred, plain)]
    assert spread[0] < 0.1
    assert spread[1] > 2 * spread[0]


def trained_on(head: Head, world: TasteWorld) -> Learner:
    learner = world.learner(holdout=0.1, bound=1e-9)
    learner.head = head
    return learner


def test_placebo_random_clicks_leave_the_head_where_it_was() -> None:
    taught, _, _ = trained(TasteWorld(), 30_000)
    trainer, made, _ = trained(TasteWorld(strength=0.0, appeal=-1.5), 30_000)
    assert trainer.pairs > taught.pairs
    moved = [np.linalg.norm(each.average.weight - each.start.weight) for each in (trainer, taught)]
    assert moved[0] < 0.2 * np.linalg.norm(trainer.start.weight)
    assert abs(auc(trainer.average, made[len(made) // 2 :]) - 0.5) < 0.08


def test_an_erased_person_is_nowhere_and_stays_away() -> None:
    world = TasteWorld(people_count=30)
    learner = world.learner(holdout=0.0)
    values = world.values(3000)
    learn(learner, world, values)
    name = world.user(3)
    number = learner.tastes.names[name]
    until = int(2e15)
    (made,) = learner.erase(name, until)
    assert (made.forget, len(made)) == ((number,), 0)
    for _ in range(2):  # now, and after a restart
        learn(learner, world, values)
        assert learner.window.counts.erased > 0
        tensors, meta = of_learner(learner)
        assert name not in json.loads(tensors["names.users"].tobytes())
        assert name not in json.loads(tensors["tastes.names"].tobytes())
        for column in ("queue.winner", "queue.loser", "outgoing.winners", "outgoing.losers"):
            assert number not in tensors[column]
        assert not tensors["tastes.residual"][number].any()
        learner = to_learner(tensors, meta, world.head(), **LIMITS)
        learner.resume(world)
    assert learner.erase(name, until) == []


def test_cuts_are_made_at_offsets_however_the_stream_comes() -> None:
    world = TasteWorld()
    batch = columns(world.values(3000))
    places = []
    for size in (17, 1000, 10_000):
        learner, found = replace(world.learner()), []
        for start in range(0, len(batch), size):
            rest = batch.span(start, min(start + size, len(batch)))
            while (row := learner.cut(rest, 1000, 10_000_000)) is not None:
                learner.take(rest.span(0, row), TOKENS.weights(rest.span(0, row)), world)
                found.append(int(rest.offset[row]))
                rest = rest.span(row, len(rest))
            learner.take(rest, TOKENS.weights(rest), world)
        places.append(found)
    assert {1000, 2000, 3000} <= set(places[0])
    assert places[1] == places[0]
    assert places[2] == places[0]
