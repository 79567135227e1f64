"""The emoji pictures as the simulated people see them: attributes, topics, references.

Read through the trainers' own reader, so that the splits are the same; what is added here (the topic, the attributes)
never goes the other way.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from icg.evaluation import attributes as attributes_module
from icg.evaluation.attributes import attributes
from icg.evaluation.people import Floats, Population, WithinConcept, shares
from icg.tiny.data import FAMILY, Pictures, load, load_test
from icg.tiny.files import DATA, fingerprint, write_whole

CACHE = Path.home() / ".cache" / "icg" / "evaluation"
FAR = 0.8
"""A test title nearer than this to a train title (cosine by MiniLM) is a near-twin and left out of the headline."""


@dataclass(frozen=True)
class Gallery:
    """Real pictures with what simulated people see of them; row i of every field is picture i."""

    pictures: Pictures
    raw: Floats  # [n, 24], raw attributes
    topics: NDArray[np.int64]  # [n], rows of TOPICS

    def __len__(self) -> int:
        return len(self.pictures)

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Gallery:
        return Gallery(self.pictures.where(chosen), self.raw[chosen], self.topics[chosen])

    def image(self, row: int) -> Image.Image:
        return Image.fromarray(self.pictures.pixels[row])

    def concepts(self) -> list[str]:
        """Each concept once, in the order of the file."""
        return list(dict.fromkeys(self.pictures.concepts.tolist()))

    def rows(self, concept: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.pictures.concepts == concept)


TOPICS = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
"""Unicode's groups: what an item is about."""


def gallery(split: str, *, data: Path = DATA, why: str = "", cache: Path = CACHE) -> Gallery:
    """Pictures, attributes and topics of "train" (validation left out), "val" or "test".

    Args:
        why: the reason of a look at the test split, written to the reader's log; required for it.

    Raises:
        ValueError: another split, or a look at the test split without a reason.
    """
    if split == "test":
        if not why:
            raise ValueError("say why the test split is looked at")
        pictures = load_test(data, why)
    elif split in {"train", "val"}:
        pictures = load(data, "train" if split == "train" else "val")
    else:
        raise ValueError(f"split must be train, val or test, got {split!r}")
    return Gallery(pictures, _raw(pictures, split, data, cache), topics_of(pictures, data))


def topics_of(pictures: Pictures, data: Path = DATA) -> NDArray[np.int64]:
    """Row of TOPICS for each picture, [n]."""
    groups = _groups(data)
    return np.array([TOPICS.index(groups[concept]) for concept in pictures.concepts.tolist()], np.int64)


def measure(pictures: Pictures) -> Floats:
    """Raw attributes of each picture, [n, 24]; about 3 ms each."""
    return np.stack([attributes(Image.fromarray(pixels)) for pixels in pictures.pixels])


def far_concepts(test: Gallery, train_titles: list[str]) -> list[str]:
    """The test concepts whose title has no near-twin among the train titles, by MiniLM's mean-pooled cosine.

    MiniLM only cuts the split here; no judge uses it.
    """
    import torch

    from icg.tiny.text import caption_states, caption_tokenizer, encoder

    model, tokenizer = encoder(), caption_tokenizer()

    def embed(titles: list[str]) -> torch.Tensor:
        states, mask = caption_states(model, tokenizer, titles)
        weights = mask[..., None].to(states.dtype)
        return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    titles = dict(zip(test.pictures.concepts.tolist(), test.pictures.titles.tolist(), strict=True))
    nearest = (embed(list(titles.values())) @ embed(sorted(set(train_titles))).T).amax(dim=1)
    return [concept for concept, cosine in zip(titles, nearest.tolist(), strict=True) if cosine < FAR]


def reference_row(gallery: Gallery, concept: str, seed: int, avoid: frozenset[str] = frozenset()) -> int | None:
    """A picture of the concept to hand over as the item's reference image.

    Args:
        avoid: artist families that it must not come from: those of the user's top two styles.

    Returns:
        A row of the gallery, or None if every picture is by a family to avoid.
    """
    rows = [int(row) for row in gallery.rows(concept) if FAMILY[str(gallery.pictures.styles[row])] not in avoid]
    if not rows:
        return None
    digest = hashlib.sha256(f"{seed}\n{concept}\n{sorted(avoid)}".encode()).digest()
    return rows[int.from_bytes(digest[:8], "big") % len(rows)]


def keywords_of(data: Path = DATA) -> dict[str, list[str]]:
    """Unicode's keywords of each concept: a text side for judges that owes nothing to any encoder."""
    table = pq.read_table(data, columns=["codepoint", "keywords"]).to_pydict()
    return {
        concept: (keywords or "").split("|")
        for concept, keywords in zip(table["codepoint"], table["keywords"], strict=True)
    }


@functools.lru_cache(maxsize=2)
def _groups(data: Path) -> dict[str, str]:
    table = pq.read_table(data, columns=["codepoint", "group"]).to_pydict()
    return dict(zip(table["codepoint"], table["group"], strict=True))


def _raw(pictures: Pictures, split: str, data: Path, cache: Path) -> Floats:
    """Attributes of all pictures, kept by the hashes of the data and of the code that measures (30 s for train)."""
    code = fingerprint(Path(attributes_module.__file__))
    kept = cache / f"attributes-{split}-{fingerprint(data)}-{code}-{len(pictures)}.npy"
    if not kept.exists():
        raw = measure(pictures)
        write_whole(kept, lambda partial: np.save(partial, raw))
    return np.asarray(np.load(kept), np.float64)


def main() -> None:
    """Print what the population's utilities are made of, on the train concepts."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--people", type=int, default=600)
    parser.add_argument("--archetypes", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    train = gallery("train", data=given.data)
    pictures = WithinConcept.fit(train.raw, train.pictures.concepts).each(train.raw, train.pictures.concepts)
    people = Population.drawn(given.people, len(TOPICS), given.seed, archetypes=given.archetypes)
    for name, some in (
        ("as drawn", people),
        ("calibrated", people.calibrated(pictures, train.topics, train.pictures.concepts)),
    ):
        print(name, shares(some, pictures, train.topics, train.pictures.concepts, train.pictures.styles))


if __name__ == "__main__":
    main()
