import numpy as np
import pytest
from PIL import Image, ImageDraw

from icg.evaluation.attributes import NAMES, attributes
from icg.evaluation.people import AGREEMENT, Population, Standardiser, sharpness_for


def picture(fill: str, box: tuple[int, int, int, int], outline: str | None = None, width: int = 1) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse(box, fill=fill, outline=outline, width=width)
    return image


def named(image: Image.Image) -> dict[str, float]:
    return dict(zip(NAMES, attributes(image), strict=True))


def test_attributes_measure_what_they_are_called() -> None:
    small, large = named(picture("red", (24, 24, 40, 40))), named(picture("red", (4, 4, 60, 60)))
    assert large["fill"] > 3 * small["fill"]
    assert named(picture("navy", (4, 4, 60, 60)))["brightness"] < named(picture("yellow", (4, 4, 60, 60)))["brightness"]
    assert named(picture("grey", (4, 4, 60, 60)))["saturation"] < 0.05 < large["saturation"]
    assert named(picture("orange", (4, 4, 60, 60)))["warmth"] > 0 > named(picture("blue", (4, 4, 60, 60)))["warmth"]
    thin = named(picture("white", (8, 8, 56, 56), "black", 1))
    thick = named(picture("white", (8, 8, 56, 56), "black", 7))
    assert thick["line_weight"] > 0.3 > thin["line_weight"]
    assert large["symmetry_left_right"] > named(picture("red", (4, 4, 30, 60)))["symmetry_left_right"]
    assert large["roundness"] > named(picture("red", (30, 4, 34, 60)))["roundness"]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    assert named(noise)["flatness"] < 0.01 < 0.5 < large["flatness"]
    assert named(noise)["detail"] > large["detail"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("size", [(64, 64), (1, 1), (300, 20)])
def test_attributes_are_finite_for_any_picture(mode: str, size: tuple[int, int]) -> None:
    assert np.isfinite(attributes(Image.new(mode, size))).all()
    assert np.isfinite(attributes(Image.new("RGB", size, "white"))).all()


def test_a_choice_agrees_with_itself_as_often_as_stated() -> None:
    people = Population.drawn(200, 3, seed=1)
    rng = np.random.default_rng(2)
    pictures = rng.normal(size=(200, 2, len(NAMES)))
    difference = np.array(
        [np.subtract(*people.utility(person, person % 3, pictures[person])) for person in range(200)]
    ).repeat(200)
    agree = people.prefers_first(difference, rng) == people.prefers_first(difference, rng)
    assert abs(agree.mean() - AGREEMENT) < 0.02


def test_taste_by_topic_has_its_share_of_the_variance() -> None:
    people = Population.drawn(300, 4, seed=3)
    pictures = np.random.default_rng(4).normal(size=(500, len(NAMES)))
    general = np.var(people.general @ pictures.T)
    topical = np.var(people.by_topic[:, 0] @ pictures.T)
    assert 0.30 < topical / (general + topical) < 0.40


def test_an_embedding_says_something_of_taste() -> None:
    rng = np.random.default_rng(5)
    embeddings = np.repeat(rng.normal(size=(2, 16)), 50, axis=0)
    people = Population.drawn(100, 2, seed=6, embeddings=embeddings)
    alike = np.corrcoef(people.general)
    assert alike[:50, :50].mean() > 0.5 > abs(alike[:50, 50:].mean())


def test_standardiser_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(ValueError, match="raw attributes"):
        Standardiser.fit(np.zeros((1, len(NAMES))))
    raw = np.random.default_rng(7).normal(size=(50, len(NAMES)))
    raw[:, 3] = 2.0
    scaled = Standardiser.fit(raw)(raw)
    assert np.allclose(scaled[:, 3], 0)
    assert abs(scaled.std() - 1) < 0.1


@pytest.mark.parametrize("agreement", [0.5, 1.0, 0.2])
def test_an_impossible_agreement_is_refused(agreement: float) -> None:
    with pytest.raises(ValueError, match="agreement"):
        sharpness_for(agreement)
