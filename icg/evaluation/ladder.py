"""The rungs of the ladder that need nobody's own cover: judges, autoencoder, base, warm-up. Each gives rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from icg.conditioning import Base
from icg.evaluation.attributes import attributes
from icg.evaluation.contenders.prompted import Paint
from icg.evaluation.emoji import Gallery
from icg.evaluation.figures import auc, bounded, kept
from icg.evaluation.panel import Measured, Panel
from icg.evaluation.people import Floats, neighbours
from icg.evaluation.relevance import blurred, real_hits, small
from icg.evaluation.report import Figure
from icg.sampling import SamplerConfig
from icg.slots import in_slots
from icg.tiny.pixels import to_tensor

LEAST_KEPT = 0.95


@dataclass(frozen=True)
class Sight:
    """What the judges make of a set of pictures that stand for a gallery's own."""

    hit: float  # title among the top 5 by the other artists' pictures
    hit_first: float  # title the first
    hit_pixels: float  # title among the top 5 by 8 × 8 pixels, no network: the floor
    hit_words: float
    group: float
    auc_u: float  # of U's differences for choices made on the real pictures
    auc_second: float | None


def sight(panel: Panel, pixels: NDArray[np.uint8], people: NDArray[np.int64], seed: int = 0) -> Sight:
    """Args:
    pixels: [n, 64, 64, 3], in the order of the panel's gallery: itself, or what became of it.
    people: numbers of those who choose; they choose between the real pictures.
    """
    gallery = panel.gallery
    seen = panel.relevance.look(pixels)
    hit, hit_first = real_hits(panel.titles, gallery, seen.embeddings)
    floor, _ = real_hits(panel.pixels, gallery, blurred(pixels))
    first, second = neighbours(gallery.pictures.concepts, np.random.default_rng(seed))
    some = panel.utility.people.part(people)

    def difference(utilities: Floats) -> Floats:
        return np.asarray(utilities[:, first] - utilities[:, second])

    true = some.utilities(panel.utility.standardise.each(gallery.raw, gallery.pictures.concepts), gallery.topics)
    choices = some.prefers_first(difference(true), np.random.default_rng(seed + 1))
    if pixels is gallery.pictures.pixels:
        shown = true
    else:
        raw = np.stack([attributes(Image.fromarray(picture)) for picture in pixels])
        shown = some.utilities(panel.utility.standardise.each(raw, gallery.pictures.concepts), gallery.topics)
    learned = None
    if panel.second is not None:
        learned = auc(difference(panel.second.utilities(pixels, gallery.topics)[people]), choices)
    return Sight(
        hit,
        hit_first,
        floor,
        float(panel.titles.hits(panel.titles.spoken(seen.words), gallery.pictures.concepts.tolist()).mean()),
        float((seen.groups == gallery.topics).mean()),
        auc(difference(shown), choices),
        learned,
    )


def judges(real: Sight, chance: float) -> list[Figure]:
    """Rung 0: can the judges see at all?"""
    made = [
        Figure("judges_hit", real.hit, least=0.5, note=f"real pictures, chance {chance:.3f}"),
        Figure("judges_hit_first", real.hit_first, note="the title alone, not the top 5"),
        Figure("judges_hit_pixels", real.hit_pixels, note="the floor: top 5 by 8 x 8 pixels, no network"),
        Figure("judges_hit_words", real.hit_words, note="by guessed words of title and keywords"),
        Figure("judges_group", real.group, note="Unicode group"),
        Figure(
            "judges_auc_u", real.auc_u, least=0.8, note="U for choices that agree with themselves in 0.775 of cases"
        ),
    ]
    if real.auc_second is not None:
        made.append(Figure("judges_auc_second", real.auc_second, least=0.7, note="the learned judge, same choices"))
    return made


def autoencoder(real: Sight, round_trip: Sight, chance: float) -> list[Figure]:
    """Rung 1: the round trip keeps 95 % of what the judges see, above chance."""

    def share(after: float, before: float, floor: float) -> float:
        return (after - floor) / (before - floor) if before > floor else float("nan")

    made = [
        Figure("autoencoder_hit_kept", share(round_trip.hit, real.hit, chance), least=LEAST_KEPT),
        Figure("autoencoder_group_kept", share(round_trip.group, real.group, 0.0), least=LEAST_KEPT),
        Figure("autoencoder_auc_u_kept", share(round_trip.auc_u, real.auc_u, 0.5), least=LEAST_KEPT, note="above 0.5"),
    ]
    if real.auc_second is not None and round_trip.auc_second is not None:
        kept_second = share(round_trip.auc_second, real.auc_second, 0.5)
        made.append(Figure("autoencoder_auc_second_kept", kept_second, least=LEAST_KEPT, note="above 0.5"))
    return made


@torch.no_grad()
def round_trip(base: Base, pixels: NDArray[np.uint8], slots: int = 8) -> NDArray[np.uint8]:
    """Pictures [n, 64, 64, 3] through the base's autoencoder and back."""
    config = base.vae.config
    shift = config.get("shift_factor") or 0.0

    def there_and_back(pictures: torch.Tensor) -> torch.Tensor:
        latents = base.vae.encode(pictures.to(base.device, base.vae.dtype), return_dict=False)[0].mode()
        return base.decode((latents - shift) * config.scaling_factor)

    decoded = in_slots(there_and_back, slots, to_tensor(pixels))
    return (decoded * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def base_rung(
    panel: Panel,
    paint: Paint,
    sampler: SamplerConfig,
    seen: Gallery,
    unseen: Gallery,
    titles: int,
    real_group: tuple[float, float],
) -> list[Figure]:
    """Rung 2: pictures of titles that the base was and was not trained on are of the right group.

    Args:
        titles: how many of each, the first by hash-free order of the file, evenly spaced.
        real_group: the judge's accuracy on real pictures of seen and of unseen concepts.
    """
    made = []
    for name, gallery, real, least in (("seen", seen, real_group[0], 0.8), ("unseen", unseen, real_group[1], 0.5)):
        concepts = gallery.concepts()
        some = [concepts[k] for k in np.linspace(0, len(concepts) - 1, min(titles, len(concepts))).astype(int)]
        first = [int(gallery.rows(concept)[0]) for concept in some]
        prompts = [str(gallery.pictures.titles[row]) for row in first]
        images = paint(prompts, list(range(len(prompts))), sampler)
        groups = panel.relevance.look(np.stack([np.asarray(small(image)) for image in images])).groups
        right = float((groups == gallery.topics[first]).mean())
        made.append(Figure(f"base_group_{name}", right, note=f"{len(some)} titles, real pictures {real:.3f}"))
        made.append(Figure(f"base_group_{name}_of_real", right / real if real else float("nan"), least=least))
    return made


def warm_up(neutral: Measured, guided: Measured, chance: float) -> list[Figure]:
    """Rung 3: the unguided adapter's neutral covers hit as often as the base's own guided ones."""
    found = kept(neutral.hit, guided.hit, chance)
    return [
        Figure("warm_up_hit_guided", float(guided.hit.mean()), note="the base told the title, guided"),
        Figure("warm_up_hit_neutral", float(neutral.hit.mean()), note="the adapter, neutral"),
        *bounded("warm_up_hit_kept", found, least=LEAST_KEPT, note="above chance"),
    ]


def line(number: int, name: str, made: Sequence[Figure]) -> str:
    """One row of the ladder."""
    missed = [row.name for row in made if row.reached is False]
    state = f"missed: {', '.join(missed)}" if missed else "reached"
    return f"rung {number} {name:<12} {state}"
