from collections.abc import Callable

import numpy as np
import pytest
import torch

from icg.conditioning import Base, select
from icg.sampling import SamplerConfig, decode, draw_latents, get_noise, get_scheduler, shared_steps

SIZE = 16

# One of each kind: single step, multistep with history, second order, with fresh noise at every step.
SCHEDULERS = [
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
]

every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


@pytest.fixture
def base(bases: Callable[[str], Base]) -> Base:
    return bases("StableDiffusion")


def config(**changes) -> SamplerConfig:
    return SamplerConfig(**{"steps": 7, "slots": 4, "width": SIZE, "height": SIZE, "branch": 0.5, **changes})


@every_scheduler
def test_without_branch_it_is_the_stock_pipeline(base, scheduler, monkeypatch):
    own = base.text(["a lantern", "a whale"], SIZE, SIZE)
    ours = draw_latents(base, own, own, [0, 1], [7, 8], config(branch=0.0, scheduler=scheduler))
    monkeypatch.setattr(base.pipeline, "scheduler", get_scheduler(base, scheduler))
    theirs = base.pipeline(
        ["a lantern", "a whale"],
        height=SIZE,
        width=SIZE,
        num_inference_steps=7,
        guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (7, 8)],
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@every_scheduler
@pytest.mark.parametrize("branch", [0.4, 1.0])
def test_branching_into_the_same_conditioning_changes_nothing(base, scheduler, branch):
    own = base.text(["a lantern", "a whale", "a cat"], SIZE, SIZE)
    owners = [2, 0, 1, 1, 0]
    rows = select(own, owners)
    straight = draw_latents(base, own, rows, owners, [7, 8, 9], config(branch=0.0, scheduler=scheduler))
    branched = draw_latents(base, own, rows, owners, [7, 8, 9], config(branch=branch, scheduler=scheduler))
    # Shared calls have fewer slots, so only float noise may differ; history lost at the branch would show in 1e-2.
    torch.testing.assert_close(branched, straight, atol=1e-4, rtol=1e-4)


@every_scheduler
def test_a_cover_is_bit_equal_alone_and_in_company(base, scheduler):
    own = base.text(["a lantern", "a whale", "a cat"], SIZE, SIZE)
    personal = base.text([f"user {number}" for number in range(6)], SIZE, SIZE)
    together = draw_latents(base, own, personal, [0, 0, 1, 1, 1, 2], [7, 8, 9], config(scheduler=scheduler))
    alone = draw_latents(base, select(own, [1]), select(personal, [3]), [0], [8], config(scheduler=scheduler))
    assert torch.equal(together[3], alone[0])


def test_guidance_is_the_stock_pipelines(base):
    own = base.text(["a lantern"], SIZE, SIZE)
    ours = draw_latents(base, own, own, [0], [7], config(branch=0.0, guidance=4.0))
    theirs = base.pipeline(
        ["a lantern"],
        negative_prompt=[""],
        height=SIZE,
        width=SIZE,
        num_inference_steps=7,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(7)],
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_guidance_may_end_before_the_last_steps(base):
    own = base.text(["a lantern"], SIZE, SIZE)

    def drawn(**changes: float) -> torch.Tensor:
        return draw_latents(base, own, own, [0], [7], config(branch=0.5, **changes))

    whole, first, never = drawn(guidance=4.0), drawn(guidance=4.0, guided=0.5), drawn(guidance=4.0, guided=0.0)
    assert torch.equal(never, drawn())
    assert torch.equal(whole, drawn(guidance=4.0, guided=1.0))
    assert not torch.equal(first, whole)
    assert not torch.equal(first, never)


def test_all_steps_shared_is_the_neutral_cover(base):
    own, personal = base.text(["a lantern"], SIZE, SIZE), base.text(["user"], SIZE, SIZE)
    shared = draw_latents(base, own, personal, [0], [7], config(branch=1.0))
    assert torch.equal(shared, draw_latents(base, own, own, [0], [7], config(branch=1.0)))
    assert not torch.equal(shared, draw_latents(base, own, personal, [0], [7], config(branch=0.5)))


@pytest.mark.parametrize(("total", "branch", "shared"), [(20, 0.5, 10), (20, 0.0, 0), (20, 1.0, 20), (7, 0.3, 2)])
def test_shared_steps(total, branch, shared):
    assert shared_steps(total, branch) == shared


def test_noise_depends_on_the_seed_alone():
    assert torch.equal(get_noise((4, 8, 8), 7)[0], get_noise((4, 8, 8), 7)[0])
    assert not torch.equal(get_noise((4, 8, 8), 7)[0], get_noise((4, 8, 8), 8)[0])


def test_decode_gives_bytes(base):
    pictures = decode(base, torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1)), config())
    assert pictures.shape == (5, SIZE, SIZE, 3)
    assert pictures.dtype == torch.uint8
    assert np.ptp(pictures.numpy()) > 10


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 0}, "steps is 0, a whole number from 1 to 1000"),
        ({"steps": 2.0}, "steps is 2.0, a whole number"),
        ({"steps": True}, "steps is True, a whole number"),
        ({"steps": "many"}, "steps is 'many', a whole number"),
        ({"steps": float("nan")}, "steps is nan"),
        ({"slots": 0}, "slots is 0"),
        ({"width": 0}, "width is 0"),
        ({"height": "64"}, "height is '64'"),
        ({"guidance": 0.5}, "guidance is 0.5, a number from 1 to 100"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": 1e300}, "guidance is 1e[+]300"),
        ({"personalization": -1.0}, "personalization is -1.0, a number from 0 to 10"),
        ({"personalization": float("nan")}, "personalization is nan"),
        ({"personalization": 1e30}, "personalization is 1e[+]30"),
        ({"branch": 1.5}, "branch is 1.5"),
        ({"branch": None}, "branch is None"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"dtype": ["float32"]}, "dtype is"),
        ({"scheduler": 5}, "5 is no scheduler"),
        ({"scheduler": "NoSuchScheduler"}, "'NoSuchScheduler' is no scheduler"),
    ],
)
def test_what_is_no_sampler_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        config(**changes)


@pytest.mark.parametrize("name", ["NoSuchScheduler", "UNet2DConditionModel"])
def test_what_is_no_scheduler_is_refused(base, name):
    with pytest.raises(ValueError, match=f"'{name}' is no scheduler"):
        get_scheduler(base, name)


def test_numbers_of_numpy_are_numbers():
    assert config(steps=np.int64(3), guidance=np.float32(2)).steps == 3


@pytest.mark.parametrize(
    "name",
    [
        "DDIMInverseScheduler",
        "EDMEulerScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "IPNDMScheduler",
        "RePaintScheduler",
    ],
)
def test_a_scheduler_that_would_draw_no_pictures_is_refused(base, name):
    with pytest.raises(ValueError, match=f"{name} cannot stand in for this base's DDIMScheduler"):
        get_scheduler(base, name)
