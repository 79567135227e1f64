"""The adapter: what the meta tokens read, refined with the user embedding, as conditioning of a diffusion model.

A bidirectional transformer first, a projection after it (as in MetaQueries, arXiv 2504.06256, section 3): the tokens
talk to one another at the width of the adapter, and only then take the base's width. Each block looks at the user's
tokens through a gate that starts at zero, so that an untrained or absent user is exactly the neutral cover.

Left out on purpose: positions. The meta tokens are learned and stand in a fixed order, each carries its own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from icg.exceptions import BadWeights

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class AdapterConfig:
    """Everything that fixes the shapes of an adapter, and what its users' vectors mean."""

    space: str  # revision of the space in which user vectors mean something
    dimension: int  # of a user vector
    features: int  # width of the MLLM's hidden states
    output: int  # width of one conditioning token of the base
    pooled: int = 0  # width of the base's pooled conditioning, 0: it takes none
    tokens: int = 64  # meta tokens
    context: int = 0  # of the prompt's own last states, handed on beside those of the meta tokens
    width: int = 768
    layers: int = 6
    heads: int = 12
    user_tokens: int = 4  # tokens that a user vector becomes
    scale: float = 1.0  # root mean square of the base's own text conditioning
    pooled_scale: float = 1.0  # the same of its pooled conditioning
    prompt: str = "{title}"  # what the MLLM is asked

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")

    @property
    def length(self) -> int:
        """Tokens of the features, and so of the conditioning."""
        return self.tokens + self.context


class Block(nn.Module):
    """Pre-norm transformer block with a gated look at the user between attention and MLP.

    What comes through the gate is added to tokens that training makes long (root mean square 8 in icg-tiny): where
    people are to be heard, gates begin in that order, and not near 0.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_self = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_user = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        # No biases on the user's side: a zero vector has nothing to say.
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.user_out = nn.Linear(width, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(width))
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, user: Tensor | None) -> Tensor:
        """[B, N, width], and the user's tokens [B, K, width] or None."""
        q, k, v = self.qkv(self.norm_self(tokens)).chunk(3, dim=-1)
        tokens = tokens + self.out(_attend(q, k, v, self.heads))
        if user is not None:
            k, v = self.key_value(user).chunk(2, dim=-1)
            seen = self.user_out(_attend(self.query(self.norm_user(tokens)), k, v, self.heads))
            tokens = tokens + self.gate * seen
        refined: Tensor = tokens + self.mlp(self.norm_mlp(tokens))
        return refined


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Adapter(nn.Module):
    """Meta tokens and what turns their features into conditioning.

    Attributes:
        meta: [tokens, features], written into the MLLM's input.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.meta = nn.Parameter(0.02 * torch.randn(config.tokens, config.features))
        self.norm_in = nn.LayerNorm(config.features)
        self.project_in = nn.Linear(config.features, width)
        self.user_in = nn.Linear(config.dimension, config.user_tokens * width, bias=False)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(width)
        self.project_out = nn.Linear(width, config.output)
        # What the prompt's own words say goes past the blocks: a small MLLM reads few of them into its meta tokens.
        self.skip = nn.Linear(config.features, config.output, bias=False) if config.context else None
        # Text encoders end with a normalisation; so does this, at their scale.
        self.norm_scale = nn.LayerNorm(config.output)
        nn.init.constant_(self.norm_scale.weight, config.scale)
        if config.pooled:
            self.project_pooled = nn.Linear(width, config.pooled)
            self.norm_pooled = nn.LayerNorm(config.pooled)
            nn.init.constant_(self.norm_pooled.weight, config.pooled_scale)
        self.let_through()

    def let_through(self) -> None:
        """Begin as what the MLLM says, where it speaks the base's own language: training then starts near the text."""
        if self.skip is not None and self.config.features == self.config.output:
            nn.init.eye_(self.skip.weight)
            nn.init.normal_(self.project_out.weight, std=0.1 / self.config.width**0.5)

    def forward(
        self, features: Tensor, users: Tensor | None = None, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Conditioning for each row.

        Args:
            features: [B, tokens + context, features], from `MLLM.read`.
            users: [B, dimension] in the adapter's space; None: neutral, for every row.
            present: [B] bool, which rows have a user; the others are exactly neutral. None: all.

        Returns:
            Tokens [B, tokens + context, output], and pooled [B, pooled] or None where the base takes none.
        """
        config = self.config
        if features.shape[1:] != (config.length, config.features):
            wanted = f"(B, {config.length}, {config.features})"
            raise ValueError(f"features of shape {tuple(features.shape)} where the adapter takes {wanted}")
        user = None if users is None else self._user_tokens(users, len(features), present)
        tokens = self.project_in(self.norm_in(features))
        for block in self.blocks:
            tokens = block(tokens, user)
        tokens = self.norm_out(tokens)
        pooled = self.norm_pooled(self.project_pooled(tokens.mean(1))) if config.pooled else None
        refined = self.project_out(tokens)
        if self.skip is not None:
            refined = refined + self.skip(features)
        return self.norm_scale(refined), pooled

    def _user_tokens(self, users: Tensor, rows: int, present: Tensor | None) -> Tensor:
        config = self.config
        if users.shape != (rows, config.dimension):
            raise ValueError(f"users of shape {tuple(users.shape)} where {(rows, config.dimension)} is wanted")
        # A unit vector gets entries of size about 1; a long one is bounded (√2), so that no user leaves what was
        # trained; a short one stays short: little is known, little changes.
        # The square of a very long one is infinite: it is divided by its largest entry first.
        longest = users.abs().amax(-1, keepdim=True).clamp_min(1)
        users = users / longest
        squared = users.square().sum(-1, keepdim=True)
        users = users * torch.sqrt(2 * config.dimension / (longest**-2 + squared))
        if present is not None:
            users = users * present[:, None]
        tokens: Tensor = self.user_in(users).unflatten(-1, (config.user_tokens, config.width))
        return tokens

    def personalise(
        self, features: Tensor, users: Tensor, present: Tensor | None = None, personalization: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """As `forward`, with the step from neutral to personal scaled: 0 is neutral, 1 as trained, more is bolder."""
        tokens, pooled = self(features, users, present)
        if personalization == 1.0:
            return tokens, pooled
        neutral, neutral_pooled = self(features)
        tokens = torch.lerp(neutral, tokens, personalization)
        if pooled is not None and neutral_pooled is not None:
            pooled = torch.lerp(neutral_pooled, pooled, personalization)
        return tokens, pooled

    def set_gates(self, value: float) -> None:
        """Open (or shut) the user's way in. Random weights with gates at 0 would give every user the neutral cover."""
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.constant_(module.gate, value)

    def save_pretrained(self, directory: str | Path) -> None:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=2, sort_keys=True) + "\n")
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load and check.

        Raises:
            BadWeights: a file is missing or no safetensors, a shape is not what the config says, a value is not finite.
        """
        folder = Path(directory)
        adapter = cls(_config(folder / CONFIG))
        try:
            state = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise BadWeights(f"the adapter's {WEIGHTS} cannot be read: {error}") from None
        _check(adapter.state_dict(), state)
        adapter.load_state_dict({name: value.float() for name, value in state.items()})
        return adapter.eval()


def _config(path: Path) -> AdapterConfig:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        return AdapterConfig(**values)
    except (OSError, ValueError, TypeError) as error:
        raise BadWeights(f"the adapter's {path.name} cannot be used: {error}") from None


def _check(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    if missing := sorted(wanted.keys() - given.keys()):
        raise BadWeights(f"the adapter has no {missing[0]} ({len(missing)} of its tensors are missing)")
    if unknown := sorted(given.keys() - wanted.keys()):
        raise BadWeights(f"the adapter has a tensor {unknown[0]} that its config does not know")
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, its config says {tuple(wanted[name].shape)}"
            raise BadWeights(f"the adapter's {name} has shape {shapes}")
        if not torch.isfinite(tensor).all():
            raise BadWeights(f"the adapter's {name} holds NaN or infinity")
