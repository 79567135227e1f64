"""What is trained: the adapter with its meta tokens, and of the MLLM what it is told by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from icg.adapter import Adapter
from icg.mllm import MLLM, Inputs

USER_PATH = ("user_in.", "norm_user.", "query.", "key_value.", "user_out.", "gate")
"""Parts of an adapter's tensors that a neutral row never reaches."""


class Student(nn.Module):
    """An adapter and the MLLM that its meta tokens read with.

    Attributes:
        reads: whether anything on the way to the features is trained; if not, features may be kept.
    """

    def __init__(self, mllm: MLLM, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.reader = mllm.model
        self.mllm = mllm
        self.requires_grad_(False)

    def training_all_but_users(self, also: Sequence[str] = ()) -> Self:
        """Meta tokens, adapter without its users' way in, and the MLLM's parameters whose names begin so."""
        for name, parameter in self.adapter.named_parameters():
            parameter.requires_grad_(not any(part in name for part in USER_PATH))
        found = [p for name, p in self.reader.named_parameters() if name.startswith(tuple(also)) and also]
        if also and not found:
            raise ValueError(f"no parameter of {type(self.reader).__name__} begins with {', '.join(also)}")
        for parameter in found:
            parameter.requires_grad_(True)
        return self

    def training_adapter(self, meta: bool = False) -> Self:
        """The whole adapter, its meta tokens only if asked: without them features are computed once."""
        self.adapter.requires_grad_(True)
        self.adapter.meta.requires_grad_(meta)
        return self

    def training_users(self) -> Self:
        """The users' way into the adapter alone: neutral covers stay what they are, to the bit."""
        for name, parameter in self.adapter.named_parameters():
            parameter.requires_grad_(any(part in name for part in USER_PATH))
        return self

    @property
    def reads(self) -> bool:
        return self.adapter.meta.requires_grad or any(p.requires_grad for p in self.reader.parameters())

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.reader.train(False)  # no dropout in what is frozen, nor in what its users will see without
        return self

    def features(self, prepared: Sequence[Inputs]) -> Tensor:
        """[B, tokens, features] of prepared items."""
        return self.mllm.read_prepared(prepared, self.adapter.meta, self.adapter.config.context)
