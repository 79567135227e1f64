"""The arms of bench/generate.py draw the same covers, and its full sizes are those of the checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from bench import generate
from bench.full_size import FULL, build, shrunk
from bench.stock import Stock
from icg.evaluation.contenders import user
from icg.generator import CoverGenerator
from icg.sampling import SamplerConfig

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def own(tiny_model: Path) -> CoverGenerator:
    return CoverGenerator.from_pretrained(tiny_model, sampler=SamplerConfig(steps=3, branch=0.0, slots=4))


@pytest.mark.parametrize("batch", [1, 3])
def test_the_stock_pipeline_draws_what_icg_draws_without_sharing(own: CoverGenerator, batch: int) -> None:
    work = generate.timed_only(own, items=2, segments=3)
    ours = user(own).draw(work.items, work.people, work.seeds)
    theirs = Stock(own, 3, 1.0, batch).draw(work.items, work.people, work.seeds)
    for mine, stock in zip(ours.images, theirs.images, strict=True):
        for a, b in zip(mine, stock, strict=True):
            assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 2
    assert ours.evaluations == theirs.evaluations == 2 * 3 * 3
    # Another person's cover is another one, or the comparison would show nothing.
    assert np.abs(np.asarray(ours.images[0][0], int) - np.asarray(ours.images[0][1], int)).max() > 2


def test_guided_stock_is_guided_as_icg_is(own: CoverGenerator) -> None:
    work = generate.timed_only(own, items=1, segments=2)
    guided = CoverGenerator(own.base, own.mllm, own.adapter, replace(own.sampler, guidance=3.0))
    ours = user(guided).draw(work.items, work.people, work.seeds)
    theirs = Stock(own, 3, 3.0, 2).draw(work.items, work.people, work.seeds)
    assert np.abs(np.asarray(ours.images[0][1], int) - np.asarray(theirs.images[0][1], int)).max() <= 3
    assert ours.evaluations == theirs.evaluations


@pytest.mark.parametrize(
    ("name", "unet", "vae"), [("sd15", 859_520_964, 83_653_863), ("sdxl", 2_567_463_684, 83_653_863)]
)
def test_full_sizes_are_the_published_ones(name: str, unet: int, vae: int) -> None:
    with torch.device("meta"):
        sizes = UNet2DConditionModel(**FULL[name].unet), AutoencoderKL(**FULL[name].vae)
    assert [sum(p.numel() for p in model.parameters()) for model in sizes] == [unet, vae]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_path_of_full_sizes_runs_narrow(name: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "ROUNDS", 1)  # it is the path that matters here, not the figures
    full = shrunk(FULL[name])
    sampler = SamplerConfig(steps=2, slots=4, width=full.pixels, height=full.pixels)
    own = build(full, tiny_model / "mllm", "cpu", sampler)
    figures = {one.name: one.value for one in generate.equal_steps(own, generate.timed_only(own, 1, 2), [4])}
    assert figures["speedup_vs_calls_equal_steps"] > 0
    assert figures["covers_per_second_batch_equal_steps"] > 0


def test_full_size_without_a_gpu_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr("sys.argv", ["bench/generate.py", "--full", "sd15"])
    assert generate.main() == 2
    assert capsys.readouterr().err == "bench/generate.py: --full wants a GPU, and torch sees none here\n"


def test_untrained_weights_have_no_quality(own: CoverGenerator, tmp_path: Path) -> None:
    figures = generate.void("speedup_vs_batch", "nothing yet")
    assert not generate.report("x", figures, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["figures"] == {"speedup_vs_batch": None}


def test_the_cheapest_setting_that_is_as_good_and_the_best_one() -> None:
    def setting(name: str, rate: float, utility: float, hit: float) -> generate.Tried:
        return generate.Tried(name, lambda: pytest.fail("nobody draws"), rate, utility, hit)

    blurred, short, long = (
        setting("blurred", 40, 0.5, 0.2),
        setting("short", 20, 0.4, 0.28),
        setting("long", 5, 0.3, 0.3),
    )
    every = [blurred, short, long]
    assert generate.cheapest(every, 0.2, 0.25) is short
    assert generate.cheapest(every, 0.4, 0.2) is blurred
    assert generate.cheapest(every, 0.5, 0.3) is None
    assert generate.best(every) is short
    assert generate.best([blurred]) is blurred


def test_stock_is_drawn_by_icgs_scheduler_and_has_its_own_back(own: CoverGenerator) -> None:
    work = generate.timed_only(own, items=1, segments=2)
    before = own.base.pipeline.scheduler
    other = CoverGenerator(
        own.base, own.mllm, own.adapter, replace(own.sampler, scheduler="DPMSolverMultistepScheduler")
    )
    plain = Stock(own, 3, 1.0, 2).draw(work.items, work.people, work.seeds)
    theirs = Stock(other, 3, 1.0, 2).draw(work.items, work.people, work.seeds)
    ours = user(other).draw(work.items, work.people, work.seeds)
    assert own.base.pipeline.scheduler is before
    assert np.abs(np.asarray(ours.images[0][1], int) - np.asarray(theirs.images[0][1], int)).max() <= 2
    assert np.abs(np.asarray(plain.images[0][1], int) - np.asarray(theirs.images[0][1], int)).max() > 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "m", "--items", "0"], "--items is 0, at least 1 is wanted"),
        (["--model", "m", "--threads", "0"], "--threads is 0, at least 1 is wanted"),
        (["--model", "m", "--json", "."], ". is a directory, a file is wanted"),
    ],
)
def test_wrong_arguments_are_said_before_anything_is_measured(
    arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench/generate.py", *arguments])
    with pytest.raises(SystemExit):
        generate.main()
    assert line in capsys.readouterr().err
