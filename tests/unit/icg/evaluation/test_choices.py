import numpy as np

from icg.evaluation.choices import choose
from icg.evaluation.emoji import Gallery
from icg.evaluation.people import Population, WithinConcept
from icg.evaluation.study import StudyConfig, study
from icg.preference import Head, estimate
from icg.tiny.data import FAMILY

SMALL = StudyConfig(training=30, held_out=12, archetypes=3, training_choices=40)


def test_choices_are_between_two_pictures_of_one_concept_and_follow_taste(train: Gallery) -> None:
    pictures = WithinConcept.fit(train.raw, train.pictures.concepts).each(train.raw, train.pictures.concepts)
    people = Population.drawn(20, 9, seed=1).calibrated(pictures, train.topics, train.pictures.concepts)
    made = choose(people, train, pictures, np.full(20, 300), seed=2)
    concepts = train.pictures.concepts
    assert (concepts[made.chosen] == concepts[made.rejected]).all()
    assert (made.chosen != made.rejected).all()
    utility = people.utilities(pictures, train.topics)
    agrees = utility[made.people, made.chosen] > utility[made.people, made.rejected]
    # Two noisy choices agree in p² + (1 − p)² = 0.775 of cases, so one agrees with the taste in about 0.86.
    assert 0.80 < agrees.mean() < 0.90


def test_a_vector_from_choices_foretells_further_choices_and_another_persons_does_not(train: Gallery) -> None:
    pictures = WithinConcept.fit(train.raw, train.pictures.concepts).each(train.raw, train.pictures.concepts)
    people = Population.drawn(40, 9, seed=3).calibrated(pictures, train.topics, train.pictures.concepts)
    head = Head.start("attributes", pictures.shape[1])
    rest = choose(people, train, pictures, np.full(40, 200), seed=5)

    def hits(count: int, shift: int = 0) -> float:
        few = choose(people, train, pictures, np.full(40, count), seed=4)
        vectors = np.stack(
            [estimate(head, pictures[few.of(p).chosen], pictures[few.of(p).rejected]) for p in range(40)]
        )
        return float(
            (
                head.margins(vectors[(rest.people + shift) % 40], pictures[rest.chosen], pictures[rest.rejected]) > 0
            ).mean()
        )

    five, fifty = hits(5), hits(50)
    assert fifty > five + 0.03
    assert five > 0.58
    assert abs(hits(50, shift=1) - 0.5) < 0.07


def test_held_out_people_are_nobody_whose_choices_train(train: Gallery) -> None:
    made = study(train, SMALL)
    assert not set(made.training.tolist()) & set(made.held_out.tolist())
    assert set(made.choices.people.tolist()) == set(made.training.tolist())
    assert set(made.histories.people.tolist()) == set(made.held_out.tolist())
    counts = np.bincount(made.histories.people)[made.held_out]
    assert counts.min() >= 5
    assert counts.max() <= 50
    assert counts.max() > 2 * counts.min()
    again = study(train, SMALL)
    assert (again.histories.chosen == made.histories.chosen).all()


def test_the_families_of_the_best_liked_styles_are_the_best_liked(train: Gallery) -> None:
    made = study(train, SMALL)
    pictures = made.standardise.each(train.raw, train.pictures.concepts)
    person = int(made.held_out[0])
    avoid = made.top_families(pictures, person)
    assert 1 <= len(avoid) <= 2
    utility = made.people.part([person]).utilities(pictures, train.topics)[0]
    family = np.array([FAMILY[str(style)] for style in train.pictures.styles])
    styles = {str(s): utility[train.pictures.styles == s].mean() for s in np.unique(train.pictures.styles)}
    assert FAMILY[max(styles, key=lambda s: styles[s])] in avoid
    assert set(avoid) <= set(family)
