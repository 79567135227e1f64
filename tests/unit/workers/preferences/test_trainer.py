from dataclasses import replace

import numpy as np

from icg.preference import Head
from workers.preferences.checkpoint import of_trainer, to_trainer
from workers.preferences.pairs import BATCH, Pairs
from workers.preferences.trainer import ENOUGH, HELD_OUT, Trainer

SPACE = "0" * 64
START = Head.start(SPACE, 8)


def pairs(
    sequence: int, partition: int = 0, held: float = 0.0, seed: int | None = None, against: bool = False
) -> Pairs:
    """People like the first half of a cover's entries, whatever they are themselves; `against`: they dislike it."""
    random = np.random.default_rng(seed if seed is not None else [sequence, partition])
    users, others, chosen, rejected = random.normal(size=(4, BATCH, 8)).astype(np.float32)
    chosen[:, :4] = np.abs(chosen[:, :4])
    rejected[:, :4] = -np.abs(rejected[:, :4])
    if against:
        chosen, rejected = rejected, chosen
    return Pairs(
        sequence=sequence,
        partition=partition,
        space=SPACE,
        users=users,
        others=others,
        chosen=chosen,
        rejected=rejected,
        weights=np.ones(BATCH, np.float32),
        held_out=random.random(BATCH) < held,
    )


def test_it_learns_what_everybody_likes_in_b() -> None:
    trainer = Trainer.of(START)
    for number in range(100):
        assert trainer.take(pairs(number), START)
    assert trainer.pairs == 100 * BATCH
    bias = trainer.average.bias
    assert bias[:4].min() > 0.1
    assert np.abs(bias[4:]).max() < 0.03


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
    some, none = Trainer.of(START), Trainer.of(START)
    mixed = pairs(1, held=0.5)
    some.take(mixed, START)
    alone = {name: getattr(mixed, name) for name in ("users", "others", "chosen", "rejected", "weights")}
    cleared = {name: np.where(_column(mixed.held_out, array), 0, array) for name, array in alone.items()}
    none.take(replace(mixed, **{**cleared, "weights": mixed.weights}), START)
    assert np.allclose(some.head.weight, none.head.weight, atol=1e-6)


def _column(flags: np.ndarray, like: np.ndarray) -> np.ndarray:
    return flags.reshape((-1,) + (1,) * (like.ndim - 1))


def test_another_space_is_dropped() -> None:
    trainer = Trainer.of(START)
    assert not trainer.take(replace(pairs(0), space="1" * 64), START)
    assert trainer.other_space == 1
    assert trainer.steps == 0


def test_what_was_learned_is_not_inferior_and_its_opposite_is() -> None:
    trainer = Trainer.of(START)
    for number in range(40):
        trainer.take(pairs(number, held=0.2), START)
    verdict = trainer.judge(START, 0.02)
    assert verdict.accepted
    assert verdict.by == "pairs of held-out people"
    assert verdict.loss_after < verdict.loss_before
    assert verdict.auc_after > verdict.auc_before
    assert trainer.since == 0

    better = trainer.average.copy()
    worse = Trainer.of(better)
    for number in range(40):  # poison that held-out people do not share
        poison = pairs(number, against=True)
        clean = pairs(1000 + number, held=1.1)
        worse.take(replace(poison, sequence=2 * number), better)
        worse.take(replace(clean, sequence=2 * number + 1), better)
    verdict = worse.judge(better, 0.02)
    assert not verdict.accepted
    assert verdict.loss_after > verdict.loss_before


def test_before_there_are_held_out_people_pairs_judge_before_they_train() -> None:
    trainer = Trainer.of(START)
    for number in range(8):
        trainer.take(pairs(number), START)
    assert len(trainer.held) < ENOUGH
    verdict = trainer.judge(START, 0.02)
    assert verdict.by == "pairs not yet trained on"
    assert verdict.judged == 8 * BATCH
    assert verdict.accepted


def test_a_head_that_is_not_finite_is_never_accepted() -> None:
    trainer = Trainer.of(START)
    for number in range(8):
        trainer.take(pairs(number), START)
    trainer.average.weight[0, 0] = np.nan
    assert not trainer.judge(START, 1e9).accepted


def test_the_newest_held_out_pairs_are_kept() -> None:
    trainer = Trainer.of(START)
    n = HELD_OUT // BATCH
    for number in range(n + 3):
        trainer.take(pairs(number, held=1.1), START)
    assert len(trainer.held) == HELD_OUT
    assert np.array_equal(trainer.held.users[: 3 * BATCH], np.concatenate([pairs(n + k).users for k in range(3)]))


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
    ours, theirs = of_trainer(broken), of_trainer(straight)
    assert ours[1] == theirs[1]
    assert all(np.array_equal(ours[0][name], theirs[0][name]) for name in theirs[0])
