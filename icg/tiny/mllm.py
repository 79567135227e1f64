"""The small multimodal LLM: a `LlavaForConditionalGeneration` of MiniLM, frozen, and our vision tower.

It reads and does not write: its language-model head is not saved (see `icg.tiny.assemble`). Only vision tower and
projector are ours.
"""

from torch import Tensor
from transformers import BertModel, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from icg.tiny import text
from icg.tiny.vision import PATCH, SIZE, image_processor, vision_config

IMAGE_TOKEN = "[unused0]"  # one of BERT's spare vocabulary entries, so the embedding table keeps its size
CONTEXT = 512  # MiniLM's positions: 64 for a picture, the rest for title and meta tokens

# Turns are read one after the other; an image is its token, a plain string is text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "{% else %}{{ part['text'] }}{% endif %}"
    "{% if not loop.last %} {% endif %}"
    "{% endfor %}{% endif %}"
    "{% if not loop.last %} {% endif %}"
    "{% endfor %}"
)


def build(frozen: BertModel | None = None) -> LlavaForConditionalGeneration:
    """The model with MiniLM (or another) inside; vision tower and projector are fresh from torch's global seed."""
    frozen = frozen or text.encoder()
    # BertConfig ties its embeddings to a head that BertModel has not; Llava would look for them by another name.
    frozen.config.tie_word_embeddings = False
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=frozen.config,
        image_token_index=processor().image_token_id,
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",  # the patch tokens without the class token
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(frozen.state_dict())
    model.train(False)
    return model


def processor() -> LlavaProcessor:
    """Tokenizer (left padding, as every reader of meta tokens wants it), image processor and chat template in one."""
    return LlavaProcessor(
        image_processor(),
        text.tokenizer(CONTEXT, padding_side="left", image_token=IMAGE_TOKEN),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" then takes off
        chat_template=CHAT_TEMPLATE,
    )


def own_weights(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """What is not MiniLM: vision tower and projector, by their names in the model."""
    ours = ("model.vision_tower.", "model.multi_modal_projector.")
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(ours)}
