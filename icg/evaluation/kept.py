"""A judge on disk: its config as JSON, its weights as safetensors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from icg.tiny.files import write_whole


def save_judge(folder: Path, config: Any, model: nn.Module) -> None:
    """Write `config.json` (of a dataclass) and `weights.safetensors`."""
    text = json.dumps(asdict(config), indent=1)
    write_whole(folder / "config.json", lambda partial: partial.write_text(text))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_whole(folder / "weights.safetensors", lambda partial: save_file(tensors, partial))


def judge_config(folder: Path) -> dict[str, Any]:
    """Raises:
    FileNotFoundError: nothing was trained there yet; says how to.
    """
    if not (folder / "weights.safetensors").exists():
        raise FileNotFoundError(
            f"no judge is at {folder}: `python -m icg.evaluation.train_judges {folder.name}` trains one"
        )
    given: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return given


def load_weights(folder: Path, model: nn.Module) -> None:
    model.load_state_dict(load_file(folder / "weights.safetensors"))
