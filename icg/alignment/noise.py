"""Between clean and noisy latents, for every family: x_t = α x + σ ε, and what the denoiser says of it.

Diffusion models walk a variance-preserving path, α² + σ² = 1 with α² = `alphas_cumprod`, and predict ε (Ho et al.,
arXiv 2006.11239), v = α ε − σ x (Salimans and Ho, arXiv 2202.00512) or x itself; flow-matching models a straight one,
α = 1 − σ, and predict ε − x (Lipman et al., arXiv 2210.02747).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from icg.exceptions import Unsupported

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


@dataclass(frozen=True)
class NoisePath:
    """A base's path; every `t` below is [B] timesteps of its scheduler, every latent [B, C, h, w].

    Attributes:
        prediction: one of PREDICTIONS.
        alphas: [timesteps], of a diffusion model; of a flow, empty.
        steps: timesteps of training: 0 is clean, `steps` (or `steps` − 1) is noise.
    """

    prediction: str
    alphas: Tensor
    steps: int

    @classmethod
    def of(cls, scheduler: Any) -> Self:
        """Read from a diffusers scheduler.

        Raises:
            Unsupported: for a prediction that is none of PREDICTIONS.
        """
        # Flow-matching schedulers do not name what is predicted: there is one thing to predict.
        prediction = str(scheduler.config.get("prediction_type", "flow_prediction"))
        if prediction not in PREDICTIONS:
            raise Unsupported(f"{type(scheduler).__name__} predicts {prediction!r}: {', '.join(PREDICTIONS)} are known")
        steps = int(scheduler.config.num_train_timesteps)
        if prediction == "flow_prediction":
            return cls(prediction, torch.empty(0), steps)
        return cls(prediction, scheduler.alphas_cumprod.double().sqrt().float(), steps)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ, [B, 1, 1, 1] each."""
        if self.prediction == "flow_prediction":
            sigma = t.float() / self.steps
            alpha = 1 - sigma
        else:
            alpha = self.alphas.to(t.device)[t.round().long().clamp(0, self.steps - 1)]
            sigma = (1 - alpha.square()).clamp_min(0).sqrt()
        return alpha[:, None, None, None], sigma[:, None, None, None]

    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.at(t)
        return alpha * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect denoiser of one picture would predict."""
        alpha, sigma = self.at(t)
        return {
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * clean,
            "sample": clean,
            "flow_prediction": noise - clean,
        }[self.prediction]

    def clean(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a prediction stands for, in closed form.

        Predicted noise says nothing of the picture where there is nothing but noise: α is kept from 0 there.
        """
        alpha, sigma = self.at(t)
        if self.prediction == "epsilon":
            return (noisy - sigma * predicted) / alpha.clamp_min(1e-3)
        if self.prediction == "v_prediction":
            return alpha * noisy - sigma * predicted
        if self.prediction == "flow_prediction":
            return noisy - sigma * predicted
        return predicted
