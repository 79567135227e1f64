import shutil

import numpy as np
import pytest
from PIL import Image

from icg.exceptions import BadWeights
from icg.preference import Head
from icg.rewards import Judge


@pytest.fixture(scope="module")
def judge(tiny) -> Judge:
    return Judge.from_parts(tiny / "rewards", tiny / "space", tiny / "preference")


@pytest.fixture(scope="module")
def covers() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(10)]


def test_every_cover_gets_its_rewards(judge, covers):
    scores = judge.score(covers, ["a cat"] * 9 + [None])
    assert all(row.keys() == {"aesthetic", "relevance"} for row in scores[:9])
    assert scores[9].keys() == {"aesthetic"}
    assert all(-1 <= row["relevance"] <= 1 for row in scores[:9])
    assert len({row["aesthetic"] for row in scores}) == 10


def test_a_title_changes_relevance_alone(judge, covers):
    cat, whale = judge.score(covers[:1] * 2, ["a cat", "a whale"])
    assert cat["aesthetic"] == whale["aesthetic"]
    assert cat["relevance"] != whale["relevance"]


def test_scores_do_not_depend_on_company(judge, covers):
    together = judge.score(covers, ["a cat"] * 5 + ["a much longer title, of a whale"] * 5)
    assert judge.score(covers[4:5], ["a cat"]) == together[4:5]
    assert np.array_equal(judge.embed(covers[7:8])[0], judge.embed(covers)[7])


def test_embeddings_are_unit_vectors_of_the_space(judge, covers):
    embeddings = judge.embed(covers)
    assert embeddings.shape == (10, 64)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_nothing_to_judge(judge):
    assert judge.score([], []) == []
    assert judge.embed([]).shape == (0, 64)


def test_prefer_is_a_table_of_users_and_covers(judge, covers):
    embeddings = judge.embed(covers)
    table = judge.prefer(embeddings[:3], embeddings)
    assert table.shape == (3, 10)
    assert (table.argmax(1) == [0, 1, 2]).all()  # a fresh head: everybody likes their own direction best


def test_unequal_lists_are_refused(judge, covers):
    with pytest.raises(ValueError, match="2 images and 1 titles"):
        judge.score(covers[:2], ["a cat"])


def test_a_head_of_another_space_is_refused(judge, tmp_path):
    Head.start("6" * 64).save(tmp_path)
    before = judge.head
    with pytest.raises(BadWeights, match="is of space 666666666666"):
        judge.load_preference(tmp_path)
    assert judge.head is before


def test_a_newer_head_of_the_space_is_taken(judge, covers, tmp_path):
    head = judge.head.copy()
    head.weight[:] = 0
    head.bias[:] = 0
    head.save(tmp_path)
    before = judge.head
    judge.load_preference(tmp_path)
    assert not judge.prefer(judge.embed(covers[:1]), judge.embed(covers)).any()
    judge.head = before


def test_an_aesthetic_reward_is_not_needed(tiny, covers, tmp_path):
    shutil.copytree(tiny / "rewards" / "relevance", tmp_path / "relevance")
    plain = Judge.from_parts(tmp_path, tiny / "space", tiny / "preference")
    assert plain.score(covers[:1], ["a cat"])[0].keys() == {"relevance"}
