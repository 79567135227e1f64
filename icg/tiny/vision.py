"""The small CLIP vision tower: the eye of the relevance reward and, starting from the same weights, of the MLLM."""

from transformers import CLIPImageProcessorPil, CLIPVisionConfig

SIZE = 64  # pixels a side
PATCH = 8  # pixels a side: 64 patch tokens


def vision_config() -> CLIPVisionConfig:
    """0.8 M parameters: twice in the stack beside base and autoencoder, they leave the adapter 4 of 32 MiB in fp16."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
    )


def image_processor() -> CLIPImageProcessorPil:
    """Shorter side to 64, centre crop, [-1, 1]: the very range in which the autoencoder decodes."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
