"""Stage 2: the relevance reward, a `VisionTextDualEncoderModel` of our vision tower and frozen MiniLM.

Its score is the cosine between a picture and a title. Trained with CLIP's contrastive loss on real pictures, on their
round trip through the autoencoder and on round trips of noised latents, because those are what it will have to judge.
"""

from torch import Tensor
from transformers import (
    CLIPVisionModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from icg.tiny import text
from icg.tiny.vision import image_processor, vision_config

PROJECTION = 128  # width in which picture and title meet


def build() -> VisionTextDualEncoderModel:
    """MiniLM frozen but for its pooler, which reads the first token and which MiniLM's own training never used."""
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision_config(), text.encoder().config, projection_dim=PROJECTION
    )
    model = VisionTextDualEncoderModel(config, CLIPVisionModel(vision_config()), text.encoder())
    model.text_model.pooler.requires_grad_(True)
    return model.eval()


def processor() -> VisionTextDualEncoderProcessor:
    """Image processor and tokenizer of the reward, as it is shipped."""
    return VisionTextDualEncoderProcessor(image_processor(), text.caption_tokenizer())


def own_weights(model: VisionTextDualEncoderModel) -> dict[str, Tensor]:
    """What is not MiniLM: the vision tower, both projections, the temperature and the retrained pooler."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("text_model.") or name.startswith("text_model.pooler.")
    }
