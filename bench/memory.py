"""The weights of real checkpoints in memory, counted on the meta device: nothing is loaded, nothing is allocated.

    python bench/memory.py [--json FILE]

Prints the tables of docs/checkpoints.md. Shapes are those of the `config.json` of the checkpoints that are named with
them; what is not written here is the default of the class in diffusers or transformers. `published` is the number of
parameters that the checkpoint's page or paper states, in billions, as a check on the shapes.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers as df
import torch
import transformers as tf

from bench.full_size import SD15_UNET, SD_VAE, SDXL_UNET
from icg.adapter import Adapter, AdapterConfig
from icg.evaluation.report import Figure, report, versions

Build = Callable[[], torch.nn.Module]


@dataclass(frozen=True)
class Checkpoint:
    """A base's parts by what they are, or an MLLM as a whole."""

    name: str  # of the page that its configs are from
    family: str  # in icg.conditioning, or the class of transformers
    parts: Mapping[str, Build]
    published: float | None = None  # billions of parameters of the denoiser, or of the MLLM


def clip_l() -> torch.nn.Module:
    """CLIP ViT-L/14's text tower: openai/clip-vit-large-patch14."""
    return tf.CLIPTextModel(tf.CLIPTextConfig(**_CLIP_L))


_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def clip_l_projected() -> torch.nn.Module:
    return tf.CLIPTextModelWithProjection(tf.CLIPTextConfig(**_CLIP_L, projection_dim=768))


def clip_g() -> torch.nn.Module:
    """OpenCLIP ViT-bigG/14's text tower: laion/CLIP-ViT-bigG-14-laion2B-39B-b160k."""
    return tf.CLIPTextModelWithProjection(
        tf.CLIPTextConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
        )
    )


def t5_xxl() -> torch.nn.Module:
    """google/t5-v1_1-xxl, its encoder."""
    return tf.T5EncoderModel(
        tf.T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    )


def gemma_2() -> torch.nn.Module:
    """google/gemma-2-2b."""
    return tf.Gemma2Model(tf.Gemma2Config())


def qwen3_4b() -> torch.nn.Module:
    """Qwen/Qwen3-4B, without its head."""
    sizes = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
    return tf.Qwen3Model(tf.Qwen3Config(**sizes, num_attention_heads=32, num_key_value_heads=8, head_dim=128))


def autoencoder(channels: int = 4, quant: bool = True) -> Build:
    """SD's autoencoder; 16 channels and no quant convolutions since SD3."""
    more = {"latent_channels": channels, "use_quant_conv": quant, "use_post_quant_conv": quant}
    return functools.partial(df.AutoencoderKL, **{**SD_VAE, **more})


def deep_autoencoder() -> torch.nn.Module:
    """mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers."""
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    return df.AutoencoderDC(
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        upsample_block_type="interpolate",
        downsample_block_type="conv",
    )


def qwen2_5_vl(hidden: int, inner: int, layers: int, heads: int, keys: int, words: int, tied: bool) -> torch.nn.Module:
    text = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": words,
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": hidden}
    return tf.Qwen2_5_VLForConditionalGeneration(
        tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    )


qwen2_5_vl_7b = functools.partial(qwen2_5_vl, 3584, 18944, 28, 28, 4, 152064, False)


def qwen3_vl_4b() -> torch.nn.Module:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    }
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return tf.Qwen3VLForConditionalGeneration(
        tf.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    )


_QWEN2_HALF = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "patch_size": 14}


def llava_onevision() -> torch.nn.Module:
    text = tf.Qwen2Config(**_QWEN2_HALF, vocab_size=152000, tie_word_embeddings=True)
    vision = tf.SiglipVisionConfig(**_SO400M, num_hidden_layers=26, image_size=384, vision_use_head=False)
    return tf.LlavaOnevisionForConditionalGeneration(
        tf.LlavaOnevisionConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    )


def smolvlm_500m() -> torch.nn.Module:
    text = tf.LlamaConfig(
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        head_dim=64,
        vocab_size=49280,
    )
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    return tf.SmolVLMForConditionalGeneration(
        tf.SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=4, pad_token_id=2)
    )


def idefics3_8b() -> torch.nn.Module:
    text = tf.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128259,
    )
    vision = {**_SO400M, "num_hidden_layers": 27, "image_size": 364}
    return tf.Idefics3ForConditionalGeneration(
        tf.Idefics3Config(text_config=text, vision_config=vision, scale_factor=2, pad_token_id=128002)
    )


def internvl3_1b() -> torch.nn.Module:
    text = tf.Qwen2Config(**_QWEN2_HALF, vocab_size=151674)
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "attention_bias": True,
        "image_size": [448, 448],
        "patch_size": [14, 14],
    }
    config = tf.InternVLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return tf.InternVLForConditionalGeneration(config)


def gemma3_4b() -> torch.nn.Module:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
    }
    vision = {**_SO400M, "num_hidden_layers": 27, "image_size": 896, "vision_use_head": False}
    return tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=text, vision_config=vision))


def of(kind: Any, **config: Any) -> Build:
    return functools.partial(kind, **config)


BASES = (
    Checkpoint(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "StableDiffusion",
        {"denoiser": of(df.UNet2DConditionModel, **SD15_UNET), "autoencoder": autoencoder(), "text": clip_l},
        0.86,
    ),
    Checkpoint(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "StableDiffusionXL",
        {
            "denoiser": of(df.UNet2DConditionModel, **SDXL_UNET),
            "autoencoder": autoencoder(),
            "text": clip_l,
            "text 2": clip_g,
        },
        2.6,
    ),
    Checkpoint(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "StableDiffusion3",
        {
            "denoiser": of(
                df.SD3Transformer2DModel,
                num_layers=24,
                num_attention_heads=24,
                caption_projection_dim=1536,
                pos_embed_max_size=192,
            ),
            "autoencoder": autoencoder(16, quant=False),
            "text": clip_l_projected,
            "text 2": clip_g,
            "text 3": t5_xxl,
        },
        2.0,
    ),
    Checkpoint(
        "black-forest-labs/FLUX.1-dev",
        "Flux",
        {
            "denoiser": of(df.FluxTransformer2DModel, guidance_embeds=True),
            "autoencoder": autoencoder(16, quant=False),
            "text": clip_l,
            "text 2": t5_xxl,
        },
        12.0,
    ),
    Checkpoint(
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "PixArtSigma",
        {
            "denoiser": of(
                df.PixArtTransformer2DModel,
                caption_channels=4096,
                use_additional_conditions=False,
                interpolation_scale=2,
            ),
            "autoencoder": autoencoder(),
            "text": t5_xxl,
        },
        0.6,
    ),
    Checkpoint(
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        "Sana",
        {"denoiser": of(df.SanaTransformer2DModel), "autoencoder": deep_autoencoder, "text": gemma_2},
        1.6,
    ),
    Checkpoint(
        "Alpha-VLLM/Lumina-Image-2.0",
        "Lumina2",
        {
            "denoiser": of(df.Lumina2Transformer2DModel, cap_feat_dim=2304),
            "autoencoder": autoencoder(16, quant=False),
            "text": gemma_2,
        },
        2.6,
    ),
    Checkpoint(
        "Qwen/Qwen-Image",
        "QwenImage",
        {
            "denoiser": of(df.QwenImageTransformer2DModel),
            "autoencoder": of(df.AutoencoderKLQwenImage),
            "text": qwen2_5_vl_7b,
        },
        20.0,
    ),
    Checkpoint(
        "Tongyi-MAI/Z-Image-Turbo",
        "ZImage",
        {
            "denoiser": of(df.ZImageTransformer2DModel),
            "autoencoder": autoencoder(16, quant=False),
            "text": qwen3_4b,
        },
        6.0,
    ),
)

MLLMS = (
    Checkpoint(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "Qwen2_5_VLForConditionalGeneration",
        {"all": functools.partial(qwen2_5_vl, 2048, 11008, 36, 16, 2, 151936, True)},
        3.75,
    ),
    Checkpoint("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2_5_VLForConditionalGeneration", {"all": qwen2_5_vl_7b}, 8.29),
    Checkpoint("Qwen/Qwen3-VL-4B-Instruct", "Qwen3VLForConditionalGeneration", {"all": qwen3_vl_4b}, 4.44),
    Checkpoint(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "LlavaOnevisionForConditionalGeneration",
        {"all": llava_onevision},
        0.89,
    ),
    Checkpoint(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "SmolVLMForConditionalGeneration", {"all": smolvlm_500m}, 0.51
    ),
    Checkpoint("HuggingFaceM4/Idefics3-8B-Llama3", "Idefics3ForConditionalGeneration", {"all": idefics3_8b}, 8.46),
    Checkpoint("OpenGVLab/InternVL3-1B-hf", "InternVLForConditionalGeneration", {"all": internvl3_1b}, 0.94),
    Checkpoint("google/gemma-3-4b-it", "Gemma3ForConditionalGeneration", {"all": gemma3_4b}, 4.3),
)


def parameters(build: Build) -> int:
    """Numbers in a model's tensors; tied ones once."""
    with torch.device("meta"):
        model = build()
    return sum(parameter.numel() for parameter in model.parameters())


def counts(one: Checkpoint) -> dict[str, int]:
    """Parameters by part; text encoders together."""
    found: dict[str, int] = {}
    for part, build in one.parts.items():
        kind = part.split()[0]
        found[kind] = found.get(kind, 0) + parameters(build)
    return found


def gib(numbers: int) -> float:
    """Of bf16 or fp16."""
    return 2 * numbers / 2**30


def base_row(one: Checkpoint) -> str:
    """A line of the page's table of bases."""
    found = counts(one)
    cells = [f"{found[part] / 1e9:.2f}" for part in ("denoiser", "autoencoder", "text")]
    drawing = gib(found["denoiser"] + found["autoencoder"])
    return f"| {one.family} | {one.name} | {' | '.join(cells)} | {drawing:.1f} | {gib(sum(found.values())):.1f} |"


def mllm_row(one: Checkpoint) -> str:
    """A line of the page's table of MLLMs."""
    found = counts(one)["all"]
    return f"| {one.family} | {one.name} | {found / 1e9:.2f} | {gib(found):.1f} |"


def adapter_size(width: int = 768, layers: int = 6, features: int = 2048, output: int = 2048) -> int:
    config = AdapterConfig("0" * 64, 64, features, output, width=width, layers=layers)
    return parameters(lambda: Adapter(config))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = []
    for one in (*BASES, *MLLMS):
        print(base_row(one) if one in BASES else mllm_row(one), flush=True)
        found = counts(one)
        main_part = found.get("denoiser", found.get("all", 0)) / 1e9
        note = f"billions; published {one.published}" if one.published else "billions"
        figures.append(Figure(f"parameters_{one.name}", main_part, note=note))
        figures.append(Figure(f"gib_{one.name}", gib(sum(found.values())), note="bf16 weights, all parts"))
    figures.append(Figure("parameters_adapter", adapter_size() / 1e9, note="billions; the default adapter for SDXL"))
    return 0 if report("bench/memory.py", figures, given.json, versions("torch", "diffusers", "transformers")) else 1


if __name__ == "__main__":
    sys.exit(main())
