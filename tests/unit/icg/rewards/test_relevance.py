import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPVisionConfig, CLIPVisionModel

from icg.exceptions import Unsupported
from icg.rewards.relevance import Relevance
from icg.rewards.vision import Preprocessing


@pytest.fixture(scope="module")
def clip(tmp_path_factory, make_tokenizer) -> Relevance:
    """Saved and loaded as public CLIP checkpoints are."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "vocab_size": 30522,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "bos_token_id": 101,
        "eos_token_id": 102,
    }
    config = CLIPConfig(
        text_config={**small, **text}, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=12
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(processor, make_tokenizer(16)).save_pretrained(folder)
    return Relevance.from_pretrained(folder)


@pytest.mark.parametrize("which", ["clip", "dual"])
def test_it_is_the_cosine(clip, tiny, which):
    reward = clip if which == "clip" else Relevance.from_pretrained(tiny / "rewards" / "relevance")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    titles = ["a cat", "a whale", "a much longer title"]
    scores = reward(images, titles)
    assert scores.shape == (3,)
    assert scores.abs().max() <= 1
    words = reward.tokenizer(titles, padding="max_length", truncation=True, return_tensors="pt")
    whole = reward.model(**words, pixel_values=reward.preprocessing(images))
    cosines = whole.logits_per_image.diag() / reward.model.logit_scale.exp()
    torch.testing.assert_close(scores, cosines, atol=1e-5, rtol=1e-4)
    scores.sum().backward()
    assert images.grad is not None
    assert images.grad.any()


def test_another_model_is_refused_by_name():
    model = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(Unsupported, match="CLIPVisionModel is no relevance reward"):
        Relevance(model, None, Preprocessing(32, 32, (0.5,) * 3, (0.5,) * 3))
