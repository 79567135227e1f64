"""The branch point is chosen by what it keeps."""

import json
from pathlib import Path

import pytest

from icg.evaluation.bench import Bench
from icg.evaluation.bootstrap import Interval
from icg.evaluation.branch import At, Curve, draw_curve, save_curve, sweep
from icg.evaluation.chart import chart

SURE, UNSURE = Interval(0.4, 0.3, 0.5), Interval(0.1, -0.1, 0.3)


def at(branch: float, quality: float, relevance: float = 1.0) -> At:
    return At(branch, Interval(quality, 0, 1), Interval(relevance, 0, 1), 1 - branch)


def test_the_latest_point_before_anything_is_lost_is_chosen() -> None:
    points = [at(0.2, 0.99), at(0.4, 0.93), at(0.6, 0.85), at(0.8, 0.91)]
    chosen = Curve(SURE, points).chosen
    assert chosen is not None
    assert chosen.branch == 0.4
    assert Curve(UNSURE, points).chosen is None, "nothing to keep"
    assert Curve(SURE, [at(0.2, 0.8), at(0.4, 0.95)]).chosen is None
    assert Curve(SURE, [at(0.2, 0.95, relevance=0.9)]).chosen is None
    assert Curve(SURE, [at(0.2, float("nan"))]).chosen is None


def test_the_curve_of_a_real_generator(bench: Bench, tmp_path: Path) -> None:
    curve = sweep(bench, tmp_path / "kept", (1.0, 0.0, 0.5, 0.4))
    # Of two steps 0.4 and 0.5 share the same one: the later name stands for both.
    assert [point.branch for point in curve.points] == [0.0, 0.5, 1.0]
    nothing, half, everything = curve.points
    assert (nothing.quality.value, nothing.relevance.value, nothing.evaluations) == (1.0, 1.0, 1.0) or (
        nothing.relevance.value != nothing.relevance.value  # nobody hits: nothing to keep
    )
    assert everything.evaluations < half.evaluations < 1
    assert everything.quality.value == pytest.approx(0, abs=1e-9), "all steps shared is the neutral cover"
    save_curve(curve, tmp_path / "curve.json", {"python": "3"})
    told = json.loads((tmp_path / "curve.json").read_text())
    assert [point["branch"] for point in told["points"]] == [0.0, 0.5, 1.0]
    assert told["chosen"] == (curve.chosen.branch if curve.chosen else None)
    draw_curve(curve, tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text().count("<circle") >= 3


def test_a_chart_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to plot"):
        chart(tmp_path / "x.svg", "", "", "", {"a": []})
    chart(tmp_path / "x.svg", "a < b", "x", "y", {"one": [(1.0, 2.0, "p")]}, wanted=0.9)
    assert "a &lt; b" in (tmp_path / "x.svg").read_text()
