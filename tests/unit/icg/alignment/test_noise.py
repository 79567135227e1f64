import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from icg.alignment.noise import NoisePath
from icg.exceptions import Unsupported


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_diffusion_path_is_the_schedulers_own(prediction: str) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction, rescale_betas_zero_snr=prediction != "epsilon")
    path = NoisePath.of(scheduler)
    clean, noise = torch.randn(2, 3, 4, 2, 2).unbind(0)
    t = torch.tensor([0, 400, 999])
    noisy = path.noisy(clean, noise, t)
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, t))
    if prediction == "v_prediction":
        torch.testing.assert_close(path.target(clean, noise, t), scheduler.get_velocity(clean, noise, t))
    torch.testing.assert_close(path.clean(noisy, path.target(clean, noise, t), t), clean, atol=1e-3, rtol=1e-3)


def test_a_flow_is_a_straight_line() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    path = NoisePath.of(scheduler)
    clean, noise = torch.randn(2, 2, 4, 2, 2).unbind(0)
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[1:3]
    noisy = path.noisy(clean, noise, t)
    torch.testing.assert_close(noisy[0], scheduler.scale_noise(clean[:1], t[:1], noise[:1])[0])
    velocity = path.target(clean, noise, t)
    torch.testing.assert_close(path.clean(noisy, velocity, t), clean)
    # One Euler step by the true velocity ends on the line again.
    moved = scheduler.step(velocity[:1], t[0], noisy[:1], return_dict=False)[0]
    torch.testing.assert_close(moved, path.noisy(clean[:1], noise[:1], t[1:]))


def test_another_prediction_is_refused() -> None:
    with pytest.raises(Unsupported, match="predicts 'score'"):
        NoisePath.of(DDIMScheduler(prediction_type="score"))
