"""Meta tokens in every class of image-text model that we name: real classes and processors at a small size.

All processors but Gemma's want torchvision (for videos, even where nobody shows one), SmolVLM's also num2words.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

from icg.adapter import Adapter, AdapterConfig
from icg.item import Item
from icg.mllm import MLLM

TEXT = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 101,
    "eos_token_id": 102,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
QWEN_TOKENS = {
    "image_token": "[unused0]",
    "video_token": "[unused1]",
    "vision_start_token": "[unused2]",
    "vision_end_token": "[unused3]",
}
QWEN_IDS = {"image_token_id": 1, "video_token_id": 2, "vision_start_token_id": 3, "vision_end_token_id": 4}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}


def template(image: str) -> str:
    return (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )


def qwen2_5_vl(tokenizer) -> tuple[Any, Any]:
    vision = {**QWEN_VISION, "patch_size": 14, "fullatt_block_indexes": [0, 1], "window_size": 56}
    config = tf.Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": ROPE}, vision_config=vision, **QWEN_IDS)
    processor = tf.Qwen2_5_VLProcessor(
        tf.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56),
        tokenizer(4096, **QWEN_TOKENS),
        tf.Qwen2VLVideoProcessor(),
        chat_template=template("[unused2][unused0][unused3]"),
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl(tokenizer) -> tuple[Any, Any]:
    vision = {**QWEN_VISION, "patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    text = {**TEXT, "head_dim": 16, "rope_parameters": ROPE}
    config = tf.Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_IDS)
    processor = tf.Qwen3VLProcessor(
        tf.Qwen2VLImageProcessorPil(patch_size=16, min_pixels=64 * 64, max_pixels=64 * 64),
        tokenizer(4096, **QWEN_TOKENS),
        tf.Qwen3VLVideoProcessor(),
        chat_template=template("[unused2][unused0][unused3]"),
    )
    return tf.Qwen3VLForConditionalGeneration(config), processor


def llava_onevision(tokenizer) -> tuple[Any, Any]:
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**VISION),
        text_config=tf.Qwen2Config(**TEXT),
        image_token_id=1,
        video_token_id=2,
        image_grid_pinpoints=pinpoints,
    )
    processor = tf.LlavaOnevisionProcessor(
        tf.LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints),
        tokenizer(4096, image_token="[unused0]", video_token="[unused1]"),
        tf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template("[unused0]"),
        image_token="[unused0]",
        video_token="[unused1]",
    )
    return tf.LlavaOnevisionForConditionalGeneration(config), processor


def _idefics_tokenizer(tokenizer) -> Any:
    words = tokenizer(4096)
    tiles = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    named = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles]
    words.add_special_tokens({"additional_special_tokens": named})
    return words


def idefics3(tokenizer) -> tuple[Any, Any]:
    words = _idefics_tokenizer(tokenizer)
    config = tf.Idefics3Config(
        vision_config=VISION,
        text_config=tf.LlamaConfig(**{**TEXT, "vocab_size": len(words)}),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    processor = tf.Idefics3Processor(
        tf.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        words,
        image_seq_len=4,
        chat_template=template("<image>"),
    )
    return tf.Idefics3ForConditionalGeneration(config), processor


def smolvlm(tokenizer) -> tuple[Any, Any]:
    words = _idefics_tokenizer(tokenizer)
    config = tf.SmolVLMConfig(
        vision_config=VISION,
        text_config=tf.LlamaConfig(**{**TEXT, "vocab_size": len(words)}),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    processor = tf.SmolVLMProcessor(
        tf.SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        words,
        tf.SmolVLMVideoProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        image_seq_len=4,
        chat_template=template("<image>"),
    )
    return tf.SmolVLMForConditionalGeneration(config), processor


def internvl(tokenizer) -> tuple[Any, Any]:
    words = tokenizer(
        4096,
        start_image_token="[unused0]",
        end_image_token="[unused1]",
        context_image_token="[unused2]",
        video_token="[unused3]",
    )
    vision = {**VISION, "image_size": [32, 32], "patch_size": [8, 8]}
    config = tf.InternVLConfig(
        vision_config=vision,
        text_config=tf.Qwen2Config(**TEXT),
        image_token_id=words.convert_tokens_to_ids("[unused2]"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    processor = tf.InternVLProcessor(
        tf.GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=False),
        words,
        tf.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=template("[unused2]"),
    )
    return tf.InternVLForConditionalGeneration(config), processor


def gemma3(tokenizer) -> tuple[Any, Any]:
    words = tokenizer(4096, image_token="[unused0]", boi_token="[unused1]", eoi_token="[unused2]")
    config = tf.Gemma3Config(
        vision_config=VISION,
        text_config={**TEXT, "head_dim": 16},
        image_token_index=words.convert_tokens_to_ids("[unused0]"),
        boi_token_index=words.convert_tokens_to_ids("[unused1]"),
        eoi_token_index=words.convert_tokens_to_ids("[unused2]"),
        mm_tokens_per_image=4,
    )
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        words,
        chat_template=template("[unused1]"),
        image_seq_length=4,
    )
    return tf.Gemma3ForConditionalGeneration(config), processor


BUILDERS = (qwen2_5_vl, qwen3_vl, llava_onevision, idefics3, smolvlm, internvl, gemma3)


@pytest.fixture(scope="module", params=BUILDERS, ids=lambda build: build.__name__)
def reader(request: pytest.FixtureRequest, make_tokenizer: Callable[..., Any]) -> MLLM:
    torch.manual_seed(0)
    return MLLM(*request.param(make_tokenizer))


@pytest.fixture
def meta(reader: MLLM) -> torch.Tensor:
    return 0.5 * torch.randn(5, reader.width, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def items(picture) -> list[Item]:
    return [Item("a cat"), Item("a much longer title, of a whale", picture), Item("b", picture), Item(None, picture)]


def test_company_changes_a_row_by_float_noise_only(reader, meta, items):
    together = reader.read(items, meta)
    assert together.shape == (4, 5, reader.width)
    for row, item in zip(together, items, strict=True):
        torch.testing.assert_close(row, reader.read([item], meta)[0], atol=1e-5, rtol=1e-4)


def test_title_and_picture_are_read(reader, meta, items):
    plain, pictured, other = reader.read([Item("b"), items[2], items[1]], meta)
    assert (plain - pictured).abs().max() > 1e-3
    assert (pictured - other).abs().max() > 1e-3


def test_gradient_reaches_every_trainable_tensor_through_it(reader, items, bases):
    base = bases("StableDiffusion")
    config = AdapterConfig(
        space="5" * 64,
        dimension=8,
        features=reader.width,
        output=base.width,
        tokens=5,
        width=32,
        layers=1,
        heads=2,
    )
    adapter = Adapter(config)
    adapter.set_gates(0.1)
    features = reader.read(items, adapter.meta)
    cond = base.condition(*adapter(features, torch.ones(4, 8)), 16, 16)
    base.predict(torch.randn(4, 4, 8, 8), torch.tensor(500), cond).square().sum().backward()
    still = [name for name, value in adapter.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []
