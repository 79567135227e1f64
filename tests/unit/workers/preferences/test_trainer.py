from dataclasses import replace

import numpy as np

from icg.preference import Head
from workers.preferences.checkpoint import of_trainer, to_trainer
from workers.preferences.judging import Margins
from workers.preferences.pairs import BATCH, Pairs, Rows
from workers.preferences.store import HELD_OUT, REPLAYED
from workers.preferences.trainer import ENOUGH, Trainer

SPACE = "0" * 64
START = Head.start(SPACE, 8)


def pairs(
    sequence: int, partition: int = 0, held: float = 0.0, seed: int | None = None, against: bool = False
) -> Pairs:
    """People like the first half of a cover's entries, whatever they are themselves; `against`: they dislike it."""
    random = np.random.default_rng(seed if seed is not None else [sequence, partition])
    users, others, chosen, rejected, items = random.normal(size=(5, BATCH, 8)).astype(np.float32)
    chosen[:, :4] = np.abs(chosen[:, :4])
    rejected[:, :4] = -np.abs(rejected[:, :4])
    if against:
        chosen, rejected = rejected, chosen
    rows = Rows(
        users=users,
        others=others,
        chosen=chosen,
        rejected=rejected,
        items=items,
        weights=np.ones(BATCH, np.float32),
        chosen_weights=np.ones(BATCH, np.float32),
        rejected_weights=np.ones(BATCH, np.float32),
        winners=random.integers(100, size=BATCH),
        losers=random.integers(100, 200, size=BATCH),
        held_out=(random.random(BATCH) < held).astype(np.int64),
    )
    return Pairs(sequence, partition, SPACE, rows)


def same(ours: Trainer, theirs: Trainer) -> bool:
    (a, one), (b, two) = of_trainer(ours), of_trainer(theirs)
    return one == two and all(np.array_equal(a[name], b[name]) for name in b)


def test_it_learns_what_everybody_likes_in_b() -> None:
    trainer = Trainer.of(START)
    for number in range(100):
        assert trainer.take(pairs(number), START)
    assert trainer.pairs == 100 * BATCH
    bias = trainer.average.bias
    assert bias[:4].min() > 0.1
    assert np.abs(bias[4:]).max() < 0.03


def test_b_is_learned_as_fast_among_people_of_long_vectors() -> None:
    found = []
    for length in (1, 6):
        trainer = Trainer.of(Head(SPACE, np.zeros((8, 8)), np.zeros(8)))  # so that only b says anything
        for number in range(60):
            rows = pairs(number).rows
            rows = replace(rows, users=rows.users * length, others=rows.others * length)
            trainer.take(Pairs(number, 0, SPACE, rows), trainer.start)
        found.append(float(trainer.average.bias[:4].mean()))
    assert found[1] > 0.8 * found[0]


def test_a_sequence_counts_once_for_each_source() -> None:
    trainer, again = Trainer.of(START), Trainer.of(START)
    for number in range(10):
        for source in (0, 1):
            trainer.take(pairs(number, source), START)
            again.take(pairs(number, source), START)
        assert not again.take(pairs(number // 2, 0), START)  # a learner that was killed sends them once more
    assert again.repeated == 10
    assert np.array_equal(again.average.weight, trainer.average.weight)


def test_held_out_pairs_train_nothing() -> None:
    trainer = Trainer.of(START)
    trainer.take(pairs(0, held=1.1), START)
    assert np.array_equal(trainer.head.weight, START.weight)
    assert (trainer.pairs, len(trainer.held)) == (0, BATCH)
    mixed = pairs(1, held=0.5)
    some, none = Trainer.of(START), Trainer.of(START)
    some.take(mixed, START)
    none.take(replace(mixed, rows=mixed.rows.take(np.flatnonzero(mixed.rows.held_out == 0))), START)
    assert 0 < some.pairs < BATCH
    assert np.array_equal(some.head.weight, none.head.weight)
    assert np.array_equal(some.replay.held().users, none.replay.held().users)


def test_another_space_is_dropped() -> None:
    trainer = Trainer.of(START)
    assert not trainer.take(replace(pairs(0), space="1" * 64), START)
    assert trainer.other_space == 1
    assert trainer.steps == 0


def test_what_was_learned_is_not_inferior_and_its_opposite_is() -> None:
    trainer = Trainer.of(START)
    for number in range(40):
        trainer.take(pairs(number, held=0.2), START)
    verdict = trainer.judge(START, Margins())
    assert verdict.accepted
    assert verdict.by == "pairs of held-out people"
    assert verdict.loss.after < verdict.loss.before
    assert verdict.loss.worst < 0
    assert verdict.order.after > verdict.order.before
    assert trainer.since == 0

    better = trainer.average.copy()
    worse = Trainer.of(better)
    for number in range(40):  # poison that held-out people do not share
        poison = pairs(number, against=True)
        clean = pairs(1000 + number, held=1.1)
        worse.take(replace(poison, sequence=2 * number), better)
        worse.take(replace(clean, sequence=2 * number + 1), better)
    verdict = worse.judge(better, Margins())
    assert not verdict.accepted
    assert verdict.loss.after > verdict.loss.before


def test_before_there_are_held_out_people_pairs_judge_before_they_train() -> None:
    trainer = Trainer.of(START)
    for number in range(3):
        trainer.take(pairs(number), START)
    assert len(trainer.held) < ENOUGH
    verdict = trainer.judge(START, Margins())
    assert verdict.by == "pairs not yet trained on"
    assert verdict.judged == 3 * BATCH
    assert verdict.accepted


def test_a_head_that_is_not_finite_is_never_accepted() -> None:
    trainer = Trainer.of(START)
    for number in range(3):
        trainer.take(pairs(number), START)
    trainer.average.weight[0, 0] = np.nan
    assert not trainer.judge(START, Margins(1e9, 1e9, 1e9)).accepted


def test_the_newest_held_out_pairs_are_kept() -> None:
    trainer = Trainer.of(START)
    n = HELD_OUT // BATCH
    for number in range(n + 3):
        trainer.take(pairs(number, held=1.1), START)
    assert len(trainer.held) == HELD_OUT
    newest = np.concatenate([pairs(n + k, held=1.1).rows.users for k in range(3)])
    assert np.array_equal(trainer.held.held().users[: 3 * BATCH], newest)


def test_a_trainer_from_a_checkpoint_goes_on_bit_for_bit() -> None:
    straight, broken = Trainer.of(START), Trainer.of(START)
    for number in range(60):
        message = pairs(number, number % 3, held=0.3)
        straight.take(message, START)
        broken.take(message, START)
        if number % 7 == 0:
            tensors, meta = of_trainer(broken)
            broken = to_trainer({name: tensor.copy() for name, tensor in tensors.items()}, meta)
            broken.take(message, START)  # read again
    broken.repeated = 0
    assert len(straight.replay) > 4 * BATCH  # so old pairs were drawn, and the same ones
    assert same(broken, straight)


def test_old_pairs_are_replayed_and_the_reservoir_keeps_some_of_all() -> None:
    trainer = Trainer.of(START)
    n = 40 * REPLAYED // BATCH
    for number in range(n):
        trainer.replay.sample(
            replace(pairs(number).rows, weights=np.full(BATCH, number, np.float32)), 0, np.random.default_rng(number)
        )
    assert len(trainer.replay) == REPLAYED
    age = n - trainer.replay.held().weights
    # The chance to enter is 1/16, so ages are exponential with a mean of 16 times the room.
    assert 0.8 < age.mean() / (16 * REPLAYED / BATCH) < 1.2


def test_forgotten_people_are_in_no_pair_that_is_kept() -> None:
    trainer = Trainer.of(START)
    for number in range(20):
        for source in (0, 1):
            trainer.take(pairs(number, source, held=0.3), START)
    gone = {int(trainer.held.held().winners[0]), int(trainer.replay.held().losers[0])}
    assert trainer.take(Pairs(20, 0, SPACE, Rows.empty(0, 8), tuple(gone)), START)
    for kept in (trainer.held, trainer.replay):
        rows, sources = kept.held(), kept.sources[: len(kept)]
        theirs = np.isin(rows.winners, list(gone)) | np.isin(rows.losers, list(gone))
        assert not (theirs & (sources == 0)).any()
        assert (theirs & (sources == 1)).any()  # numbers are a partition's own
    assert not trainer.take(Pairs(20, 0, SPACE, Rows.empty(0, 8), tuple(gone)), START)


def test_people_who_changed_and_scores_that_changed_are_told() -> None:
    trainer = Trainer.of(START)
    for number in range(60):
        trainer.take(pairs(number), START)
    trainer.drift.turn()
    for number in range(60, 120):
        trainer.take(pairs(number), START)
    calm = trainer.drift.turn()
    assert max(calm) < 0.1
    for number in range(120, 180):
        moved = pairs(number)
        trainer.take(replace(moved, rows=replace(moved.rows, users=moved.rows.users + 1)), START)
    population, score = trainer.drift.turn()
    assert population > 0.5
    assert score > 2 * calm[1]
