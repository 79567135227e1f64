import numpy as np
import pytest
import torch

from icg.alignment.catalogue import Choices
from icg.alignment.people import People, PeopleConfig, Taste, estimate_people, same_segments
from icg.preference import Head
from icg.rewards.preference import PreferenceModel

HEAD = Head.start("5" * 64, 64)


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    """[12, 64]: a direction for each of three colours, and noise."""
    rng = np.random.default_rng(1)
    colour = rng.standard_normal((3, 64))
    rows = colour[np.arange(12) % 3] + 0.3 * rng.standard_normal((12, 64))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def found(choices: Choices, embeddings: np.ndarray) -> People:
    return estimate_people(choices, HEAD, embeddings, PeopleConfig(segments=3))


def test_people_of_one_taste_are_one_segment_and_score_their_colour_best(found: People, embeddings: np.ndarray) -> None:
    assert found.segments[:3].tolist() == found.segments[3:].tolist()
    assert len(set(found.segments[:3].tolist())) == 3
    scores = HEAD.score(found.whole[:, None], embeddings[None])
    assert all(int(best) % 3 == person % 3 for person, best in enumerate(scores.argmax(axis=1)))


def test_what_is_learned_from_was_in_no_history(found: People, choices: Choices) -> None:
    for person in range(len(found)):
        mine = np.flatnonzero(choices.users == person)
        later = found.shown[np.isin(found.shown, mine)]
        assert later.tolist() == mine[15:].tolist()
    assert len({row.tobytes() for row in found.vectors[0]}) == found.vectors.shape[1]


def test_others_are_the_people_of_other_segments(found: People) -> None:
    for person in range(len(found)):
        wanted = found.whole[found.segments != found.segments[person]].mean(axis=0)
        np.testing.assert_allclose(found.others[person], wanted, atol=1e-5)
    swapped = same_segments(found, People(**{**vars(found), "segments": np.array([0, 0, 1, 1, 1, 1])}))
    np.testing.assert_allclose(swapped.others[0], found.whole[2:].mean(axis=0), atol=1e-5)


def test_the_personal_reward_is_own_less_others(found: People, taste_model: PreferenceModel) -> None:
    taste, images = Taste(taste_model, found), torch.rand(2, 3, 64, 64)
    users = torch.tensor([1, 4])
    covers = taste_model.encoder(images)
    other = torch.from_numpy(found.whole)
    mean = torch.stack([taste_model.score(other[found.segments != found.segments[u]], covers[[k]].expand(4, -1)).mean()
                        for k, u in enumerate(users.tolist())])  # fmt: skip
    wanted = taste_model.score(other[users], covers) - mean
    torch.testing.assert_close(taste(images, users), wanted, atol=1e-5, rtol=1e-4)


def test_somebody_with_one_choice_is_estimated_too(embeddings: np.ndarray) -> None:
    few = Choices(np.array([0, 1]), np.array([0, 1]), np.array([1, 2]))
    people = estimate_people(few, HEAD, embeddings, PeopleConfig(segments=2))
    assert np.linalg.norm(people.whole, axis=1).min() > 0
    assert people.shown.tolist() == [0, 1]
