from pathlib import Path

import torch

from icg.tiny import text
from icg.tiny.autoencoder import AutoencoderConfig
from icg.tiny.autoencoder import build as build_autoencoder
from icg.tiny.caption_states import CaptionStates
from icg.tiny.data import Pictures
from icg.tiny.dual_encoder import DualEncoderConfig, build, hits, loss, own_weights, processor, similarity, train, worn
from icg.tiny.pixels import to_tensor
from icg.training import Run

TINY = DualEncoderConfig(projection=16)


def test_gradients_reach_what_is_trained_and_nothing_of_minilm(pictures: Pictures, captions: CaptionStates) -> None:
    torch.manual_seed(0)
    model = build(TINY)
    states = captions.plain[:, 0].float()
    loss(
        model,
        to_tensor(pictures.pixels[::3]),
        states,
    ).backward()
    trained = {name for name, tensor in model.named_parameters() if tensor.grad is not None and tensor.grad.any()}
    assert trained == {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert {name for name in trained if name.startswith("text_model.")} == {
        "text_model.pooler.dense.weight",
        "text_model.pooler.dense.bias",
    }


def test_shipped_weights_hold_nothing_of_minilm_but_the_retrained_pooler() -> None:
    weights = own_weights(build(TINY))
    assert not [name for name in weights if name.startswith(("text_model.embeddings", "text_model.encoder"))]
    assert sum(tensor.numel() for tensor in weights.values()) < 2e6


def test_the_score_is_that_of_the_stock_model_and_processor(pictures: Pictures) -> None:
    torch.manual_seed(0)
    model, titles = build(TINY), ["red apple", "blue car"]
    images = list(pictures.pixels[:3])
    inputs = processor()(text=titles, images=images, padding=True, return_tensors="pt")
    states, _ = text.caption_states(text.encoder(), text.caption_tokenizer(), titles)
    with torch.no_grad():
        ours = similarity(model, to_tensor(pictures.pixels[:3]), states)
        stock = model(**inputs)
    torch.testing.assert_close(ours, stock.image_embeds @ stock.text_embeds.T, atol=1e-4, rtol=0)


def test_hits_count_titles_among_the_nearest() -> None:
    cosines = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    assert hits(cosines, torch.tensor([1, 2]), among=1) == 0
    assert hits(cosines, torch.tensor([1, 2]), among=2) == 0.5
    assert hits(cosines, torch.tensor([1, 2]), among=3) == 1


def test_worn_pictures_differ_and_a_third_is_the_plain_round_trip(pictures: Pictures) -> None:
    torch.manual_seed(0)
    autoencoder = build_autoencoder(AutoencoderConfig(channels=(8, 8, 8, 8), norm_groups=4)).eval()
    pixels = torch.from_numpy(pictures.pixels)
    noisy, plain = worn(autoencoder, pixels, TINY, "cpu"), worn(autoencoder, pixels, DualEncoderConfig(noise=0), "cpu")
    same = (noisy == plain).flatten(1).all(dim=1).float().mean()
    assert noisy.shape == pixels.shape
    assert 0.1 < same < 0.6


def test_training_finds_the_titles(pictures: Pictures, captions: CaptionStates, tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder = build_autoencoder(AutoencoderConfig(channels=(8, 8, 8, 8), norm_groups=4))
    # One picture a title to learn by heart: what is tested is that the loop learns, not what it would take.
    some = pictures.where(pictures.styles == "noto")
    few = CaptionStates(captions.plain, captions.worded[::3], captions.empty, captions.title[::3])
    run = Run(folder=tmp_path, steps=40, batch=8, rate=1e-3, warmup=5, cooldown=10, ema=0.8)
    model = train(TINY, run, autoencoder, some, some, few)
    with torch.no_grad():
        cosines = similarity(model, to_tensor(some.pixels), captions.plain[:, 0].float())
    assert hits(cosines, few.title, among=1) > 0.5  # chance is 1 of 8
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert not [name for name in saved if name.startswith(("text_model.embeddings", "text_model.encoder"))]
