"""Where an item's covers may part: how much of their early steps they can share before their people notice.

    quality_kept(branch) = (U_branch − U_neutral) / (U_0 − U_neutral), same seeds, on validation

The latest branch point that keeps enough of utility and of relevance is chosen, and written into the adapter's
`sampler.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from icg.evaluation.bench import Bench
from icg.evaluation.bootstrap import Interval, over_pairs
from icg.evaluation.chart import chart
from icg.evaluation.compare import FULL
from icg.evaluation.contenders import Contender, user
from icg.evaluation.figures import kept, quality_kept
from icg.evaluation.run import measured
from icg.sampling import shared_steps
from icg.tiny.files import write_whole

BRANCHES = tuple(k / 10 for k in range(1, 10))
LEAST_QUALITY = 0.90
LEAST_RELEVANCE = 0.95


@dataclass(frozen=True)
class At:
    """What sharing this much keeps."""

    branch: float
    quality: Interval  # of utility above neutral
    relevance: Interval  # of hits above chance
    evaluations: float  # denoiser rows, of those without sharing

    @property
    def enough(self) -> bool:
        return self.quality.value >= LEAST_QUALITY and self.relevance.value >= LEAST_RELEVANCE


@dataclass(frozen=True)
class Curve:
    """Attributes:
    gain: U of personal covers over neutral ones, nothing shared; what there is to keep.
    """

    gain: Interval
    points: list[At]

    @property
    def chosen(self) -> At | None:
        """The latest that keeps enough, all earlier ones as well; None where there is nothing to keep."""
        if self.gain.low <= 0:
            return None
        best = None
        for point in self.points:
            if not point.enough:
                break
            best = point
        return best


def sweep(bench: Bench, folder: Path, branches: Sequence[float] = BRANCHES) -> Curve:
    """Draw for the bench's people at every branch point, in order.

    Args:
        folder: where what was drawn and judged is kept.
    """
    plain = measured(bench, "title", "neutral", folder)
    full = measured(bench, "title", FULL, folder, partial(_at, bench, 0.0, FULL))
    chance = bench.world.panel.titles.chance
    points = []
    steps = bench.generator.sampler.steps
    # Two shares of few steps may be the same number of them.
    for branch in {shared_steps(steps, branch): branch for branch in sorted(branches)}.values():
        name = f"icg_{branch:g}"
        found = measured(bench, "title", name, folder, partial(_at, bench, branch, name))
        points.append(
            At(
                branch,
                quality_kept(found.utility, full.utility, plain.utility),
                kept(found.hit, full.hit, chance),
                found.evaluations / full.evaluations,
            )
        )
    return Curve(over_pairs(full.utility - plain.utility), points)


def _at(bench: Bench, branch: float, name: str) -> Contender:
    return user(bench.sampled(branch=branch), name)


def save_curve(curve: Curve, path: Path, facts: Mapping[str, Any]) -> None:
    """The curve as JSON."""
    body = {
        "gain": vars(curve.gain),
        "chosen": None if curve.chosen is None else curve.chosen.branch,
        "wanted": {"quality_kept": LEAST_QUALITY, "relevance_kept": LEAST_RELEVANCE},
        "points": [
            {
                "branch": at.branch,
                "quality_kept": vars(at.quality),
                "relevance_kept": vars(at.relevance),
                "evaluations": at.evaluations,
            }
            for at in curve.points
        ],
        "machine": facts,
    }
    # NaN is no JSON: there is no quality to keep where nobody gains.
    text = json.dumps(_finite(body), indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda partial: partial.write_text(text))


def draw_curve(curve: Curve, path: Path) -> None:
    """The curve as SVG; points that are no numbers are left out."""
    series = {
        "quality kept": [
            (at.branch, at.quality.value, "") for at in curve.points if at.quality.value == at.quality.value
        ],
        "relevance kept": [
            (at.branch, at.relevance.value, "") for at in curve.points if at.relevance.value == at.relevance.value
        ],
    }
    chart(path, "What sharing early steps keeps", "share of the steps", "kept", series, wanted=LEAST_QUALITY)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and value - value != 0 else value
