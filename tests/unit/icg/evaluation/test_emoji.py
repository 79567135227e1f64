import numpy as np
import pytest

from icg.evaluation.emoji import TOPICS, Gallery, gallery, measure, reference_row, topics_of
from icg.evaluation.people import Population, WithinConcept, shares
from icg.tiny.data import FAMILY, load
from icg.tiny.files import DATA

present = pytest.mark.skipif(not DATA.exists(), reason="the emoji pictures are not on this machine")


@present
def test_people_on_the_emoji_are_what_the_measuring_rules_ask_for() -> None:
    pictures = load(DATA, "train")
    some = np.unique(pictures.concepts)[::9]
    pictures = pictures.where(np.isin(pictures.concepts, some))
    raw, topics = measure(pictures), topics_of(pictures)
    standardised = WithinConcept.fit(raw, pictures.concepts).each(raw, pictures.concepts)
    drawn = Population.drawn(400, len(TOPICS), seed=5, archetypes=12)
    people = drawn.calibrated(standardised, topics, pictures.concepts)
    measured = shares(people, standardised, topics, pictures.concepts, pictures.styles)
    assert measured.topical >= 0.30
    assert measured.style <= 0.50
    assert 0.75 <= measured.agreement <= 0.80
    # And everyone is about as decided as everyone else.
    assert np.allclose(people.utilities(standardised, topics).std(axis=1), 1)
    assert drawn.utilities(standardised, topics).std(axis=1).std() > 0.1


@present
def test_the_test_split_is_not_looked_at_without_a_reason() -> None:
    with pytest.raises(ValueError, match="why"):
        gallery("test")


def test_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split"):
        gallery("all")


def test_a_style_that_is_all_there_is_explains_everything_and_noise_nothing() -> None:
    rng = np.random.default_rng(0)
    styles = np.array(["a", "b"] * 200)
    concepts, topics = np.array([f"c{i // 4}" for i in range(400)]), np.arange(400) // 4 % 3
    people = Population.drawn(50, 3, seed=1)
    by_style = rng.normal(size=(2, 24))[(styles == "b").astype(int)]
    assert shares(people.part(slice(None)), by_style, topics, concepts, styles).style > 0.55
    assert shares(people, by_style, topics, concepts, styles).style_and_topic > 0.999
    assert shares(people, rng.normal(size=(400, 24)), topics, concepts, styles).style < 0.02


def test_within_a_concept_the_concept_itself_says_nothing(train: Gallery) -> None:
    within = WithinConcept.fit(train.raw, train.pictures.concepts)
    pictures = within.each(train.raw, train.pictures.concepts)
    rows = train.rows("c7")
    assert np.abs(pictures[rows].mean(axis=0)).max() < 0.5
    assert np.abs(train.raw[rows].mean(axis=0) - train.raw.mean(axis=0)).max() > 0.01
    with pytest.raises(ValueError, match="no real picture of concept 'c900'"):
        within(train.raw[0], "c900")
    joined = within.joined(train.raw[rows] + 1, ["c900"] * len(rows))
    assert np.allclose(joined(train.raw[rows] + 1, "c900"), within(train.raw[rows], "c7"))


def test_a_reference_never_comes_from_a_family_to_avoid(train: Gallery) -> None:
    avoid = frozenset({"fluent", "noto", "emojitwo"})
    rows = [reference_row(train, "c3", seed, avoid) for seed in range(40)]
    families = {FAMILY[str(train.pictures.styles[row])] for row in rows if row is not None}
    assert families == {"fxemoji", "twemoji", "serenity_pixel"}
    assert {str(train.pictures.concepts[row]) for row in rows if row is not None} == {"c3"}
    assert reference_row(train, "c3", 0, frozenset(FAMILY.values())) is None
