import pytest
import torch

from icg.exceptions import BadWeights
from icg.item import Item
from icg.mllm import MLLM, TITLE_TOKENS, collate, letterbox


@pytest.fixture
def meta(mllm: MLLM) -> torch.Tensor:
    return torch.randn(5, mllm.width, generator=torch.Generator().manual_seed(7))


def test_meta_tokens_read_title_and_picture(mllm, meta, picture):
    items = [Item("a whale"), Item("a lantern"), Item("a lantern", picture), Item(None, picture)]
    features = mllm.read(items, meta)
    assert features.shape == (4, 5, mllm.width)
    assert torch.isfinite(features).all()
    for first in range(4):
        for second in range(first):
            assert (features[first] - features[second]).abs().max() > 1e-4


def test_the_prompts_own_last_states_come_after_the_meta_tokens(mllm, meta, picture):
    short, long = Item("b"), Item("a much longer title of many words, all of them read", picture)
    features = mllm.read([short, long], meta, context=40)
    assert features.shape == (2, 5 + 40, mllm.width)
    assert torch.equal(features[:, :5], mllm.read([short, long], meta))
    said = features[:, 5:].abs().sum(-1) > 0
    words = [mllm.prepare(item)["input_ids"].shape[1] for item in (short, long)]
    assert said.sum(1).tolist() == [min(count, 40) for count in words]
    assert said[0].tolist() == [False] * (40 - words[0]) + [True] * words[0], "the last words stand last"
    torch.testing.assert_close(features[0], mllm.read([short], meta, context=40)[0], atol=2e-6, rtol=1e-5)


def test_company_changes_a_row_by_float_noise_only(mllm, meta, picture):
    items = [Item("a whale"), Item("a much longer title of many words, all of them read", picture), Item("b", picture)]
    together = mllm.read(items, meta)
    for row, item in zip(together, items, strict=True):
        torch.testing.assert_close(row, mllm.read([item], meta)[0], atol=2e-6, rtol=1e-5)


def test_read_alone_twice_is_bit_equal(mllm, meta, picture):
    item = Item("a lantern", picture)
    assert torch.equal(mllm.read([item], meta), mllm.read([item], meta))


def test_gradient_reaches_the_meta_tokens_and_nothing_else(mllm, meta, picture):
    meta.requires_grad_()
    mllm.read([Item("a lantern", picture), Item("a whale")], meta).square().sum().backward()
    assert (meta.grad.abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in mllm.model.parameters())


def test_the_hook_is_gone_afterwards(mllm, meta):
    mllm.read([Item("a lantern")], meta)
    assert not mllm.model.get_input_embeddings()._forward_hooks


def test_padding_is_on_the_left_and_meta_tokens_at_the_end():
    short = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 1]])}
    long = {"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 1]])}
    batch = collate([short, long], tokens=2, placeholder=0)
    assert batch["input_ids"].tolist() == [[0, 5, 6, 0, 0], [7, 8, 9, 0, 0]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_a_long_title_is_cut_at_a_token(mllm, meta):
    words = ["lantern"] * 200
    cut = " ".join(words[:TITLE_TOKENS])
    assert torch.equal(mllm.read([Item(" ".join(words))], meta), mllm.read([Item(cut)], meta))


def test_positions_do_not_count_padding(tiny):
    # MiniLM has absolute positions: a neighbour's length would otherwise move every word of a title.
    reader = MLLM.from_pretrained(tiny / "mllm")
    meta = 0.1 * torch.randn(4, reader.width, generator=torch.Generator().manual_seed(8))
    alone = reader.read([Item("a cat")], meta)[0]
    beside = reader.read([Item("a cat"), Item("a very long title that pads its short neighbour on the left")], meta)[0]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-4)


def test_a_picture_is_letterboxed_on_white(picture):
    square = letterbox(picture, 56)
    assert square.size == (56, 56)
    assert square.getpixel((28, 1)) == (255, 255, 255)
    assert square.getpixel((28, 28)) == (200, 20, 20)


def test_transparency_is_white(picture):
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    assert letterbox(clear, 8).getpixel((4, 4)) == (255, 255, 255)


def test_wrong_meta_tokens_are_named(mllm):
    with pytest.raises(ValueError, match=r"\(5, 7\) where the model takes \(N, 24\)"):
        mllm.read([Item("a lantern")], torch.zeros(5, 7))


def test_a_processor_without_chat_template_is_refused(mllm):
    template, mllm.processor.chat_template = mllm.processor.chat_template, None
    try:
        with pytest.raises(BadWeights, match="LlavaForConditionalGeneration has no chat template"):
            MLLM(mllm.model, mllm.processor)
    finally:
        mllm.processor.chat_template = template


def test_an_item_needs_a_title_or_a_picture():
    with pytest.raises(ValueError, match="a title, an image or both"):
        Item("  ")


def test_saved_and_loaded_reads_the_same(mllm, meta, picture, tmp_path):
    mllm.save_pretrained(tmp_path)
    loaded = MLLM.from_pretrained(tmp_path)
    item = Item("a lantern", picture)
    assert torch.equal(loaded.read([item], meta), mllm.read([item], meta))


def test_pictures_are_read_by_pillow_with_torchvision_and_without(mllm, tmp_path):
    mllm.save_pretrained(tmp_path / "once")
    loaded = MLLM.from_pretrained(tmp_path / "once")
    assert type(loaded.processor.image_processor).__name__.endswith("Pil")
    loaded.save_pretrained(tmp_path / "twice")
    kept = [(tmp_path / folder / "tokenizer_config.json").read_text() for folder in ("once", "twice")]
    assert '"backend": "tokenizers"' in kept[1]
    assert '"backend": "tokenizers"' in kept[0]
