from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from icg.evaluation.emoji import TOPICS, Gallery
from icg.evaluation.figures import auc
from icg.evaluation.ladder import autoencoder, judges, line, sight
from icg.evaluation.panel import Panel
from icg.evaluation.people import neighbours
from icg.evaluation.relevance import RelevanceConfig, RelevanceJudge, RelevanceModel, Titles, words_of
from icg.evaluation.second import SecondConfig, SecondJudge, SecondModel, in_second_half
from icg.evaluation.study import Study, StudyConfig, study
from icg.evaluation.train_judges import augment, hit_rate, relevance, second, vocabulary
from icg.evaluation.utility import Utility
from icg.tiny.data import FAMILY

SMALL = RelevanceConfig(widths=(8, 8, 16, 16), embedding=32)
STUDY = StudyConfig(training=30, held_out=10, archetypes=3, training_choices=20)


@pytest.fixture(scope="module")
def made(train: Gallery) -> Study:
    return study(train, STUDY)


@pytest.fixture(scope="module")
def keywords(train: Gallery, unseen: Gallery) -> dict[str, list[str]]:
    """Each third concept is round, each fifth small."""
    concepts = [*train.concepts(), *unseen.concepts()]
    return {c: [w for w, k in (("round", 3), ("small", 5)) if int(c[1:]) % k == 0] for c in concepts}


@pytest.fixture(scope="module")
def trained(
    train: Gallery, unseen: Gallery, keywords: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a relevance judge, stopped once on the way."""
    folder = tmp_path_factory.mktemp("relevance")
    relevance(train, unseen, keywords, folder, 4, 8, SMALL)
    relevance(train, unseen, keywords, folder, 8, 8, SMALL)
    return folder


def test_a_trained_judge_knows_concepts_better_than_an_untrained_one(
    trained: Path, unseen: Gallery, keywords: dict[str, list[str]]
) -> None:
    judge = RelevanceJudge.load(trained)
    found = hit_rate(judge, unseen, Titles.of(judge, unseen, keywords))
    assert found["chance"] == 0.25
    assert found["hit"] > 0.5
    assert judge.model.config.words == ("round", "small", "thing")


def test_a_judge_is_the_same_after_saving(trained: Path, unseen: Gallery, tmp_path: Path) -> None:
    judge = RelevanceJudge.load(trained)
    judge.save(tmp_path)
    few = unseen.pictures.pixels[:5]
    again = RelevanceJudge.load(tmp_path).look(few)
    assert (again.embeddings == judge.look(few).embeddings).all()
    assert np.allclose(np.linalg.norm(again.embeddings, axis=1), 1, atol=1e-5)
    with pytest.raises(FileNotFoundError):
        RelevanceJudge.load(tmp_path / "nothing")


def test_every_parameter_of_the_judges_learns() -> None:
    torch.manual_seed(0)
    model = RelevanceModel(replace(SMALL, concepts=7, words=("a", "b")))
    features = model.features(torch.rand(4, 3, 64, 64) * 2 - 1)
    (model.cosines(model.embed(features)).square().sum() + model.words(features).sum() + model.groups(features).sum()
     ).backward()  # fmt: skip
    assert model.groups.out_features == len(TOPICS)
    other = SecondModel(SecondConfig(people=3))
    other.scores(other(torch.rand(4, 3, 64, 64)), torch.arange(4)).square().sum().backward()
    for some in (model, other):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in some.parameters())


def titles(concepts: int = 8) -> Titles:
    """Concept k lies on axis k; only noto drew concept 0, and nobody the last."""
    axes = np.eye(concepts)
    by_family = {family: axes.copy() for family in set(FAMILY.values())}
    for family, mean in by_family.items():
        mean[-1] = np.nan
        if family != "noto":
            mean[0] = np.nan
    return Titles(tuple(f"c{k}" for k in range(concepts)), by_family, np.eye(concepts, dtype=bool))


def test_a_hit_is_the_own_title_among_the_best() -> None:
    known = titles()
    picture = np.array([[0.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.0]])
    near = known.near(picture)
    assert [bool(known.hits(near, [f"c{k}"])[0]) for k in range(8)] == [
        False,
        True,
        True,
        True,
        True,
        True,
        False,
        False,
    ]
    # What nothing stands for is never hit, however near: here the reference's artist was the only one to draw it.
    own = np.eye(8)[:1]
    assert known.hits(known.near(own), ["c0"], top=1)[0]
    assert not known.hits(known.near(own, left_out="noto"), ["c0"])[0]
    assert not known.hits(known.near(np.eye(8)[7:]), ["c7"])[0]
    assert known.chance == 5 / 8


def test_words_speak_for_the_titles_that_say_them() -> None:
    known = titles()
    words = np.full((2, 8), -3.0)
    words[0, 2] = words[1, 5] = 2.0
    assert known.hits(known.spoken(words), ["c2", "c5"], top=1).all()
    assert not known.hits(known.spoken(words), ["c5", "c2"], top=1).any()
    assert words_of("Cats & dogs", ["paw-prints", "a"]) == {"cat", "dog", "paw", "print"}
    assert vocabulary({str(k): f"red {k}" for k in range(4)}, {str(k): ["x"] for k in range(4)}) == ("red",)


def test_augmenting_keeps_white_white_and_differs() -> None:
    white = augment(torch.ones(4, 3, 64, 64), torch.Generator().manual_seed(0))
    assert white.mean() > 0.93
    picture = torch.ones(6, 3, 64, 64)
    picture[:, :, 20:44, 20:44] = -0.5
    changed = augment(picture, torch.Generator().manual_seed(0))
    assert ((changed[0] - changed[1]).abs().mean()) > 0.02
    assert changed.abs().max() <= 1
    assert (changed == augment(picture, torch.Generator().manual_seed(0))).all()


def test_the_second_judge_learns_taste_from_choices_on_its_half(made: Study, unseen: Gallery, tmp_path: Path) -> None:
    assert 0.4 < np.mean([in_second_half(f"c{k}") for k in range(1000)]) < 0.6
    judge = second(made, unseen, tmp_path / "second", 100, 4, SecondConfig(width=32, depth=1, patch=16))
    within = made.standardise.joined(unseen.raw, unseen.pictures.concepts)
    true = made.people.utilities(within.each(unseen.raw, unseen.pictures.concepts), unseen.topics)
    a, b = neighbours(unseen.pictures.concepts, np.random.default_rng(0))
    guessed = SecondJudge.load(tmp_path / "second").utilities(unseen.pictures.pixels, unseen.topics)
    assert (guessed == judge.utilities(unseen.pictures.pixels, unseen.topics)).all()
    assert auc(guessed[:, a] - guessed[:, b], true[:, a] > true[:, b]) > 0.6


def test_the_panel_sees_a_round_trip_that_destroys(
    trained: Path, made: Study, unseen: Gallery, keywords: dict[str, list[str]]
) -> None:
    judge = RelevanceJudge.load(trained)
    utility = Utility(made.people, made.standardise.joined(unseen.raw, unseen.pictures.concepts))
    panel = Panel(unseen, utility, judge, Titles.of(judge, unseen, keywords), Titles.by_pixels(unseen), None)
    pixels = unseen.pictures.pixels
    real = sight(panel, pixels, made.held_out)
    # Bradley-Terry people who repeat 0.775 of their choices: their own U tells 0.86 of pairs, AUC a little more.
    assert 0.85 < real.auc_u < 0.97
    same = sight(panel, pixels.copy(), made.held_out)
    assert same == real
    blank = sight(panel, np.full_like(pixels, 255), made.held_out)
    assert abs(blank.auc_u - 0.5) < 0.05
    chance = panel.titles.chance
    assert all(row.reached for row in autoencoder(real, same, chance))
    lost = autoencoder(real, blank, chance)
    assert not any(row.reached for row in lost if "auc" in row.name or "hit" in row.name)
    assert "missed" in line(1, "autoencoder", lost)
    assert judges(real, chance)[0].value == real.hit
