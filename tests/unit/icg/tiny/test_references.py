import numpy as np
import torch

from icg.tiny.data import FAMILY, Pictures
from icg.tiny.references import candidates, draw

STYLES = ["noto", "blobmoji", "fluent_3d", "fluent_flat", "fluent_hc", "emojitwo", "emojitwo_bw", "twemoji"]


def _pictures() -> Pictures:
    """Two concepts in eight styles, and one that only noto and blobmoji drew."""
    styles = [*STYLES, *STYLES, "noto", "blobmoji"]
    concepts = np.array(["a"] * 8 + ["b"] * 8 + ["c"] * 2)
    return Pictures(np.zeros((18, 8, 8, 3), np.uint8), concepts, concepts, np.array(styles))


def test_a_reference_is_the_same_concept_by_another_family() -> None:
    pictures = _pictures()
    for row, rows in enumerate(candidates(pictures)):
        assert (pictures.concepts[rows] == pictures.concepts[row]).all()
        assert FAMILY[str(pictures.styles[row])] not in {FAMILY[str(style)] for style in pictures.styles[rows]}
    sizes = [len(rows) for rows in candidates(pictures)]
    assert sizes == [6, 6, 5, 5, 5, 6, 6, 7] * 2 + [0, 0]


def test_every_candidate_is_drawn_and_none_gives_minus_one() -> None:
    found = candidates(_pictures())
    drawn = draw(found, torch.tensor([0] * 200 + [17]), torch.Generator().manual_seed(0))
    assert set(drawn[:200].tolist()) == set(found[0].tolist())
    assert drawn[200] == -1
