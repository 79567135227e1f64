"""Meta tokens: learnable vectors that read title and reference image through a frozen image-text model.

N placeholder ids stand at the end of the *left*-padded `input_ids`, and a forward hook on the model's input embedding
writes the parameters there. Appending them to `inputs_embeds` instead would need no hook, but Qwen2.5-VL computes its
positions from `input_ids`, and so do others.

The parameters themselves belong to the adapter (they are trained with it); here is only the frozen reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, BertModel, PreTrainedModel

from icg.exceptions import BadWeights, Unsupported
from icg.item import Item
from icg.loading import loading

SIDE = 448
"""Reference images are letterboxed on a white square of so many pixels: one number of image tokens for every item.
448 = 16 × 28 is a whole number of patches for ViTs of patch 14, 16 and 28; processors of a fixed size resize again."""

TITLE_TOKENS = 64
"""A title is cut after so many tokens; 500 characters of English are about 110."""

Inputs = dict[str, Tensor]


def letterbox(image: Image.Image, side: int) -> Image.Image:
    """On a white square, whole, transparency on white."""
    if image.mode in {"RGBA", "LA", "P", "PA"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(canvas, layer)
    return ImageOps.pad(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC, color="white")


class MLLM:
    """A frozen transformers image-text model with its own processor and chat template.

    Attributes:
        width: of its hidden states, and so of a meta token.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, side: int = SIDE) -> None:
        if processor.chat_template is None:
            raise BadWeights(f"the processor of {type(model).__name__} has no chat template")
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.side = side
        self.width: int = model.config.get_text_config().hidden_size

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Load from a folder in `save_pretrained` layout; never from a hub, never a pickle.

        Raises:
            BadWeights: what is there cannot be loaded.
            Unsupported: it wants a package that is not here.
        """
        with loading("mllm", directory):
            model: Any = AutoModelForImageTextToText.from_pretrained(
                directory, local_files_only=True, use_safetensors=True, dtype=dtype
            )
            try:
                # Pillow with torchvision and without: the two resize differently, and other pixels are other covers.
                processor = AutoProcessor.from_pretrained(directory, local_files_only=True, backend="pil")
            except ImportError as error:
                # Most processors want torchvision for videos, whoever shows them one.
                raise Unsupported(f"the processor of {type(model).__name__} wants more: {error}") from None
        # The tokenizer is handed that word, too, and would save it as its own backend.
        processor.tokenizer.backend = processor.tokenizer.init_kwargs["backend"] = "tokenizers"
        return cls(model.to(device), processor)

    def save_pretrained(self, directory: str | Path) -> None:
        self.model.save_pretrained(directory)
        self.processor.save_pretrained(directory)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def prepare(self, item: Item, prompt: str = "{title}") -> Inputs:
        """One item through chat template and processor; every tensor's first dimension is 1 (or patches, for Qwen)."""
        content: list[dict[str, Any]] = []
        if item.image is not None:
            content.append({"type": "image", "image": letterbox(item.image, self.side)})
        if item.title:
            content.append({"type": "text", "text": prompt.format(title=self._shorten(item.title))})
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        return dict(inputs)

    def _shorten(self, title: str) -> str:
        # The title is text for the chat template, so it is cut as text, where its last allowed token ends.
        title = " ".join(title.split())
        encoded = self.processor.tokenizer(title, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"]
        return title if len(offsets) <= TITLE_TOKENS else title[: offsets[TITLE_TOKENS - 1][1]]

    def read(self, items: Sequence[Item], meta: Tensor, prompt: str = "{title}", context: int = 0) -> Tensor:
        """What the meta tokens see of each item.

        Items with and without an image take different calls. Within a call shorter ones are padded on the left, so that
        a row differs from the same item read alone by float noise; read one at a time, it does not differ at all.

        Args:
            meta: [N, width], the learnable vectors; gradients reach them through the frozen model.
            prompt: what is asked of the model, with the title at `{title}`.
            context: how many of the prompt's own last states are wanted, too.

        Returns:
            [items, N + context, width], the last hidden states at the meta tokens, then those of the prompt's last
            tokens (zeros before the first of a short prompt), float32.
        """
        if meta.ndim != 2 or meta.shape[1] != self.width:
            raise ValueError(f"meta tokens of shape {tuple(meta.shape)} where the model takes (N, {self.width})")
        return self.read_prepared([self.prepare(item, prompt) for item in items], meta, context)

    def read_prepared(self, prepared: Sequence[Inputs], meta: Tensor, context: int = 0) -> Tensor:
        """`read` for items that were prepared before, as a trainer keeps them."""
        rows: list[Tensor | None] = [None] * len(prepared)
        for names in dict.fromkeys(frozenset(inputs) for inputs in prepared):
            group = [index for index, inputs in enumerate(prepared) if inputs.keys() == names]
            collated = collate([prepared[index] for index in group], len(meta), self._placeholder)
            for index, row in zip(group, self.features(collated, meta, context), strict=True):
                rows[index] = row
        return torch.stack([row for row in rows if row is not None])

    @property
    def _placeholder(self) -> int:
        # Any ordinary id will do: its embedding is overwritten and its attention mask is given.
        tokenizer = self.processor.tokenizer
        return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    def features(self, inputs: Inputs, meta: Tensor, context: int = 0) -> Tensor:
        """`read` for inputs of one kind that were prepared and collated: [B, N + context, width]."""
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        inputs = {name: v.to(self.model.dtype) if v.is_floating_point() else v for name, v in inputs.items()}
        if any(isinstance(module, BertModel) for module in self.model.modules()):
            # Absolute positions count from the left edge, padding included; rotary ones do not mind.
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with _written(self.model.get_input_embeddings(), meta, inputs["input_ids"].shape):
            output = self.model.base_model(**inputs, use_cache=False)
        hidden: Tensor = output.last_hidden_state[:, -(context + len(meta)) :].float()
        said = hidden * inputs["attention_mask"][:, -hidden.shape[1] :, None]
        said = nn.functional.pad(said, (0, 0, context + len(meta) - hidden.shape[1], 0))
        return torch.cat([said[:, context:], said[:, :context]], dim=1)


def collate(prepared: Sequence[Inputs], tokens: int, placeholder: int) -> Inputs:
    """Left-pad to the longest, then `tokens` placeholders at the end; pictures one after another.

    Tensors shaped like `input_ids` (attention mask, token types) are padded like it: with 0, 1 at a placeholder's mask.
    """
    length = max(inputs["input_ids"].shape[1] for inputs in prepared)
    batch: dict[str, list[Tensor]] = {name: [] for name in prepared[0]}
    for inputs in prepared:
        ids = inputs["input_ids"]
        for name, value in inputs.items():
            if value.shape == ids.shape:
                left, right = {"input_ids": (placeholder, placeholder), "attention_mask": (0, 1)}.get(name, (0, 0))
                value = nn.functional.pad(value, (length - ids.shape[1], 0), value=left)
                value = nn.functional.pad(value, (0, tokens), value=right)
            batch[name].append(value)
    return {name: torch.cat(values) for name, values in batch.items()}


@contextmanager
def _written(embedding: nn.Module, meta: Tensor, shape: torch.Size) -> Iterator[None]:
    def write(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if args[0].shape != shape:  # Some models also embed their image token alone, to compare with it.
            return output
        tokens = meta.to(output.dtype).expand(len(output), *meta.shape)
        return torch.cat([output[:, : -len(meta)], tokens], dim=1)

    handle = embedding.register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()
