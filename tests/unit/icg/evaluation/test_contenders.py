"""Contenders on a planted generator, whose right answer is known."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from icg.evaluation.cases import cases, k_means, nearest, other_segment, readers, seeds
from icg.evaluation.compare import AGAIN
from icg.evaluation.contenders import (
    BestOfShared,
    Case,
    FilteredNeutral,
    Oracle,
    Planted,
    Reader,
    ReferenceImage,
    ideal,
    mismatched,
    neutral,
    random_embedding,
    segment,
    user,
)
from icg.evaluation.contenders.base import Worth, evaluations
from icg.evaluation.contenders.filtered import FILTERS, Filter
from icg.evaluation.emoji import Gallery
from icg.evaluation.figures import wins_over
from icg.evaluation.planted import PlantedGenerator, heedless, seeing
from icg.evaluation.study import Study, StudyConfig, study
from icg.evaluation.utility import Utility
from icg.preference import Head
from icg.sampling import SamplerConfig
from icg.tiny.data import FAMILY

SAMPLER = SamplerConfig(steps=20, branch=0.5)


@pytest.fixture(scope="module")
def made(train: Gallery) -> Study:
    return study(train, StudyConfig(training=40, held_out=24, archetypes=4, training_choices=30, fewest=30, most=50))


@pytest.fixture(scope="module")
def utility(made: Study, unseen: Gallery) -> Utility:
    return Utility(made.people, made.standardise.joined(unseen.raw, unseen.pictures.concepts))


@pytest.fixture(scope="module")
def people(made: Study, train: Gallery) -> list[Reader]:
    """Vectors in a space that is the attributes themselves: what a perfect encoder would give."""
    embeddings = made.standardise.each(train.raw, train.pictures.concepts).astype(np.float32)
    return readers(made, embeddings, Head.start("attributes", 24), count=24)


@pytest.fixture(scope="module")
def items(unseen: Gallery) -> list[Case]:
    return [
        Case(concept, int(unseen.topics[unseen.rows(concept)[0]]), str(unseen.pictures.titles[unseen.rows(concept)[0]]))
        for concept in unseen.concepts()
    ]


@pytest.fixture(scope="module")
def blind(unseen: Gallery) -> PlantedGenerator:
    return PlantedGenerator(unseen, heedless, SAMPLER)


@pytest.fixture(scope="module")
def sighted(unseen: Gallery, made: Study) -> PlantedGenerator:
    return PlantedGenerator(unseen, seeing(made.standardise.deviation), SAMPLER)


def liked(utility: Utility, items: list[Case], people: list[Reader], images: list[list[Image.Image]]) -> np.ndarray:
    numbers = [reader.number for reader in people]
    return np.stack(
        [utility.each(c.concept, c.topic, numbers, row) for c, row in zip(items, images, strict=True)], axis=1
    )


def true_worth(utility: Utility) -> Worth:
    return lambda case, users, images: utility.of(case.concept, case.topic, [reader.number for reader in users], images)


def test_neutral_against_itself_is_a_half(
    blind: PlantedGenerator, utility: Utility, items: list[Case], people: list[Reader]
) -> None:
    def of(seed: int) -> np.ndarray:
        return liked(utility, items, people, neutral(blind, AGAIN).draw(items, people, seeds(items, seed)).images)

    shares = [wins_over(of(2 * k), of(2 * k + 1), 2).value for k in range(40)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    # With other seeds it is really drawn anew.
    assert len(set(shares)) > 10


def test_who_sees_taste_wins_and_controls_do_not(
    sighted: PlantedGenerator, utility: Utility, items: list[Case], people: list[Reader]
) -> None:
    noise = seeds(items, 0)

    def of(contender: object) -> np.ndarray:
        return liked(utility, items, people, contender.draw(items, people, noise).images)  # type: ignore[attr-defined]

    own, plain, strange = of(user(sighted)), of(neutral(sighted)), of(mismatched(sighted))
    assert wins_over(own, plain, 200).low > 0.55
    assert wins_over(own, strange, 200).low > 0.55
    assert abs(wins_over(strange, plain, 50).value - 0.5) < 0.12
    assert abs(wins_over(of(random_embedding(sighted)), plain, 50).value - 0.5) < 0.12
    grouped = of(segment(sighted))
    assert plain.mean() < grouped.mean() < own.mean()


def test_ceilings_lie_above_everybody(
    sighted: PlantedGenerator, unseen: Gallery, utility: Utility, items: list[Case], people: list[Reader]
) -> None:
    noise = seeds(items, 0)
    own = liked(utility, items, people, user(sighted).draw(items, people, noise).images)
    best = liked(utility, items, people, Planted(unseen, true_worth(utility)).draw(items, people, noise).images)
    assert (best >= own - 1e-9).all()
    assert best.mean() > own.mean() + 0.1
    drawn = Oracle(sighted, utility, 12).draw(items, people, noise)
    plain = liked(utility, items, people, neutral(sighted).draw(items, people, noise).images)
    assert (liked(utility, items, people, drawn.images) >= plain - 1e-9).all()
    assert drawn.evaluations == len(items) * 12 * 20


def test_what_choices_tell_lies_between_nothing_and_the_true_taste(
    made: Study, unseen: Gallery, utility: Utility, items: list[Case], people: list[Reader]
) -> None:
    def of(worth: Worth) -> np.ndarray:
        return liked(utility, items, people, Planted(unseen, worth).draw(items, people, seeds(items, 0)).images)

    known, best = of(ideal(made, utility)), of(true_worth(utility))
    anything = of(lambda case, users, images: np.zeros((len(users), len(images))))
    assert (best >= known).all()
    assert best.mean() > known.mean() + 0.05
    assert wins_over(known, anything, 200).low > 0.55


def test_the_best_of_shared_covers_is_chosen_by_what_was_learned(
    blind: PlantedGenerator, made: Study, utility: Utility, items: list[Case], people: list[Reader]
) -> None:
    def by_vector(users: list[Reader], images: list[Image.Image]) -> np.ndarray:
        from icg.evaluation.attributes import attributes

        raw = np.stack([attributes(image) for image in images]) / made.standardise.deviation
        return np.stack([reader.vector for reader in users]) @ raw.T

    noise = seeds(items, 0)
    eight = BestOfShared(blind, by_vector).draw(items, people, noise)
    plain = liked(utility, items, people, neutral(blind).draw(items, people, noise).images)
    assert wins_over(liked(utility, items, people, eight.images), plain, 200).low > 0.5
    assert eight.evaluations == len(items) * 8 * 20
    # 24 people cost ICG 10 + 24 · 10 calls an item, which is 12 covers of 20.
    same = BestOfShared(blind, by_vector, None)
    assert same.draw(items, people, noise).evaluations == len(items) * 12 * 20
    assert user(blind).draw(items, people, noise).evaluations == len(items) * (10 + 24 * 10)


def test_a_colour_filter_is_found_for_who_likes_its_colours(
    blind: PlantedGenerator, train: Gallery, utility: Utility, items: list[Case], people: list[Reader]
) -> None:
    practice = [Case(c, int(train.topics[train.rows(c)[0]]), f"thing {c[1:]}") for c in train.concepts()[:3]]
    source = PlantedGenerator(train, heedless, SAMPLER)

    class Both:
        """Draws practice items from the train pictures, the others from the unseen ones."""

        name = "neutral"

        def draw(self, some: list[Case], users: list[Reader], noise: list[int]):  # type: ignore[no-untyped-def]
            return neutral(source if some is practice else blind).draw(some, users, noise)

    def worth(case: Case, users: Sequence[Reader], images: Sequence[Image.Image]) -> np.ndarray:
        return utility.of(case.concept, case.topic, [each.number for each in users], images)

    few, items = people[:6], items[:10]
    contender = FilteredNeutral(Both(), worth, practice, seeds(practice, 9))
    noise = seeds(items, 0)
    filtered = liked(utility, items, few, contender.draw(items, few, noise).images)
    plain = liked(utility, items, few, neutral(blind).draw(items, few, noise).images)
    assert wins_over(filtered, plain, 2).value > 0.55
    assert len({contender.chosen(reader) for reader in few}) > 1
    with pytest.raises(ValueError, match="no items"):
        FilteredNeutral(Both(), worth, [], [])


def test_filters_leave_white_white_and_one_of_them_does_nothing() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    assert Filter() in FILTERS
    assert (np.asarray(Filter()(picture)) == np.asarray(picture)).all()
    white = Image.new("RGB", (4, 4), "white")
    assert all((np.asarray(one(white)) == 255).all() for one in FILTERS)
    grey = np.asarray(Filter(saturation=0.0)(picture)).astype(int)
    assert np.abs(grey[..., 0] - grey[..., 2]).max() <= 1


def test_the_reference_is_handed_back_and_missed_where_there_is_none(
    unseen: Gallery, people: list[Reader], items: list[Case]
) -> None:
    some = people[:3]
    shown, rows = cases(unseen, unseen.concepts(), "both", [r.number for r in some], [frozenset({"noto"})] * 3)
    drawn = ReferenceImage().draw(shown, some, seeds(shown, 0))
    assert drawn.evaluations == 0
    for (i, k), row in rows.items():
        assert (np.asarray(drawn.images[i][k]) == unseen.pictures.pixels[row]).all()
    with pytest.raises(ValueError, match="no reference"):
        ReferenceImage().draw(items, some, seeds(items, 0))


def test_cases_are_the_same_concepts_in_every_setting_and_references_keep_away(
    unseen: Gallery, people: list[Reader]
) -> None:
    some = [reader.number for reader in people[:4]]
    avoid = [frozenset({"noto"}), frozenset({"fluent", "twemoji"}), frozenset({"noto"}), frozenset()]
    by_setting = {
        given: cases(unseen, unseen.concepts(), given, some, avoid)
        for given in ("title", "reference", "both", "wrong_reference")
    }
    assert len({tuple(case.concept for case in made) for made, _ in by_setting.values()}) == 1
    assert not by_setting["title"][1]
    assert all(case.title is None for case in by_setting["reference"][0])
    for given, same in (("both", True), ("reference", True), ("wrong_reference", False)):
        made, rows = by_setting[given]
        for (i, k), row in rows.items():
            assert FAMILY[str(unseen.pictures.styles[row])] not in avoid[k]
            assert (str(unseen.pictures.concepts[row]) == made[i].concept) is same
        # Readers of the same avoided families share the picture, and so are drawn together.
        assert made[0].references[some[0]] is made[0].references[some[2]]
        assert sum(len(positions) for _, positions in made[0].groups(people[:4])) == 4
    assert seeds(by_setting["both"][0], 0) == seeds(by_setting["title"][0], 0)
    assert seeds(by_setting["both"][0], 0) != seeds(by_setting["both"][0], 1)


def test_a_mismatched_person_is_of_another_segment(people: list[Reader]) -> None:
    segments = np.array([0, 0, 1, 2, 2])
    others = other_segment(segments, 0)
    assert (segments[others] != segments).all()
    with pytest.raises(ValueError, match="one segment"):
        other_segment(np.zeros(3, np.int64), 0)
    assert all(not np.array_equal(reader.vector, reader.other) for reader in people)
    centres = k_means(np.repeat(np.eye(3), 5, axis=0) + 0.01, 3, seed=0)
    assert len(set(nearest(np.eye(3), centres).tolist())) >= 2


def test_readers_know_choices_and_no_taste(people: list[Reader], made: Study) -> None:
    assert set(vars(people[0])) == {"number", "vector", "segment", "other", "chosen", "rejected"}
    assert 30 <= len(people[0].chosen) == len(people[0].rejected) <= 50
    with pytest.raises(ValueError, match="are held out"):
        readers(made, np.zeros((400, 24), np.float32), Head.start("s", 24), count=25)


def test_evaluations_count_shared_steps_once_and_guidance_twice() -> None:
    assert evaluations(SAMPLER, 8) == 10 + 8 * 10
    assert evaluations(replace(SAMPLER, guidance=3.0), 1) == 40
    assert evaluations(replace(SAMPLER, branch=0.0), 3) == 60
    assert evaluations(replace(SAMPLER, guidance=3.0, guided=0.5), 8) == 20 + 8 * 10
    assert evaluations(SAMPLER, 0) == 0
