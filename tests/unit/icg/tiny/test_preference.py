from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from icg.alignment.catalogue import Choices
from icg.init import init_tiny
from icg.preference import Head, estimate
from icg.revision import revision
from icg.rewards.aesthetic import Aesthetic
from icg.rewards.judge import Judge
from icg.rewards.preference import CoverEncoder
from icg.tiny import autoencoder, base, dual_encoder, mllm, preference
from icg.tiny.assemble import ship
from icg.tiny.autoencoder import AutoencoderConfig
from icg.tiny.data import Pictures
from icg.tiny.pixels import to_tensor
from icg.training import Run
from tests.small import SIZES, small_encoder

CONFIG = preference.PreferenceConfig(choices=8, rounds=1)
VAE = AutoencoderConfig(channels=(8, 8), latent_channels=4, norm_groups=4)


def choose(pictures: Pictures, people: int, each: int) -> Choices:
    """Everybody likes filled pictures more than outlines."""
    rng = np.random.default_rng(0)
    outline = pictures.styles == "emojitwo_bw"
    rows = []
    for user in range(people):
        for _ in range(each):
            of = np.flatnonzero(pictures.concepts == rng.choice(pictures.concepts))
            filled, outlined = rng.choice(of[~outline[of]]), of[outline[of]][0]
            rows.append((user, filled, outlined))
    users, chosen, rejected = np.array(rows).T
    return Choices(users, chosen, rejected)


def test_what_all_people_like_is_learned_and_resumed_to_the_bit(pictures: Pictures, tmp_path: Path) -> None:
    choices = choose(pictures, 6, 20)
    torch.manual_seed(0)
    vae = autoencoder.build(VAE)
    run = Run(tmp_path / "whole", steps=60, batch=4, rate=2e-3, warmup=5, ema=0.5, observe_seconds=1e9)
    model, head = preference.train(CONFIG, run, vae, pictures, choices, "a")
    embeddings = preference.embed_all(model, torch.from_numpy(pictures.pixels), "cpu")
    odd = preference.some(choices, choices.users % 2 == 1)
    assert preference.agreement(head, odd, embeddings, preference.later(odd), 5) > 0.75

    cut = replace(run, folder=tmp_path / "cut")
    preference.train(CONFIG, replace(cut, steps=25), vae, pictures, choices, "a", kept=tmp_path / "worn.npy")
    again, _ = preference.train(CONFIG, cut, vae, pictures, choices, "a", kept=tmp_path / "worn.npy")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="was trained as"):
        preference.train(CONFIG, cut, vae, pictures, choices, "b")


def test_the_other_half_teaches_nothing(pictures: Pictures, tmp_path: Path) -> None:
    choices = choose(pictures, 4, 6)
    odd = choices.users % 2 == 1
    other = Choices(
        choices.users,
        np.where(odd, choices.rejected, choices.chosen),
        np.where(odd, choices.chosen, choices.rejected),
    )
    torch.manual_seed(0)
    vae = autoencoder.build(VAE)
    trained = []
    for name, given in (("one", choices), ("two", other)):
        run = Run(tmp_path / name, steps=2, batch=2, rate=1e-3, observe_seconds=1e9)
        trained.append(preference.train(CONFIG, run, vae, pictures, given, "a")[0])
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in trained), strict=True))
    with pytest.raises(ValueError, match="even and of odd"):
        preference.train(CONFIG, run, vae, pictures, preference.some(choices, ~odd), "a")


def test_the_prior_of_the_fitted_head_is_the_peoples_distribution() -> None:
    """People of a mean and a wide taste along one axis: the head finds both, and few choices then say more."""
    rng = np.random.default_rng(1)
    covers = rng.normal(size=(400, 4)).astype(np.float32)
    covers /= np.linalg.norm(covers, axis=1, keepdims=True)
    tastes = np.zeros((80, 4))
    tastes[:, 0] = 6 * rng.normal(size=80)
    tastes[:, 1] = 3
    users = np.repeat(np.arange(80), 60)
    first, other = rng.integers(0, 400, (2, len(users)))
    margins = (tastes[users] * (covers[first] - covers[other])).sum(-1)
    wins = rng.random(len(users)) < 1 / (1 + np.exp(-margins))
    choices = Choices(users, np.where(wins, first, other), np.where(wins, other, first))
    start = Head.start("", 4)
    head = preference.fit_prior(start, choices, covers, rounds=8)
    assert head.bias[1] == pytest.approx(3, abs=1)
    deviation = np.sqrt(np.diag(head.weight.T @ head.weight))
    assert deviation[0] == pytest.approx(6, abs=2)
    assert deviation[1:].max() < 2
    ask = preference.later(choices)
    before, after = (preference.agreement(h, choices, covers, ask, 5) for h in (start, head))
    assert after > before + 0.02


def test_shipped_parts_are_the_judges_and_the_average(pictures: Pictures, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = preference.encoder()
    rng = np.random.default_rng(0)
    head = Head("", rng.normal(size=(64, 64)), rng.normal(size=64))
    weights = tmp_path / "weights"
    for name, tensors in {
        "autoencoder": autoencoder.build(SIZES.vae).state_dict(),
        "unet": base.build_unet(SIZES.unet, small_encoder().config.hidden_size).state_dict(),
        "relevance": dual_encoder.own_weights(dual_encoder.build(SIZES.relevance, small_encoder())),
        "mllm": mllm.own_weights(mllm.build(small_encoder())),
        "preference": preference.own_weights(encoder, head),
    }.items():
        ship(tensors, weights, name)
    assert sum(path.stat().st_size for path in weights.glob("preference-*")) < 2**20
    init_tiny(tmp_path / "tiny", weights=weights, sizes=SIZES)
    judge = Judge.from_parts(*(tmp_path / "tiny" / name for name in ("rewards", "space", "preference")))
    assert judge.head.space == revision("space", tmp_path / "tiny" / "space")
    assert np.array_equal(judge.head.weight, head.weight.astype(np.float16).astype(np.float32))
    images = (to_tensor(pictures.pixels[:4]) + 1) / 2
    with torch.no_grad():
        embeddings = CoverEncoder.from_pretrained(tmp_path / "tiny" / "space")(images).numpy()
        liked = Aesthetic.from_pretrained(tmp_path / "tiny" / "rewards" / "aesthetic")(images).numpy()
    nobody = np.zeros((4, 64), np.float32)
    assert np.allclose(liked, judge.head.score(nobody, embeddings), atol=1e-4)
    assert estimate(judge.head, embeddings[:1], embeddings[1:2]).any()
