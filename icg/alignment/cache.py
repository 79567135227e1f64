"""What is computed once for a key and kept, the longest unused thrown away first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from icg.slots import chunks

Key = TypeVar("Key", bound=Hashable)
Tensors = dict[str, Tensor]


class Cache(Generic[Key]):
    """Tensors by key, at most so many bytes of them, computed a fixed number of keys at a time.

    A resumed run meets its keys in another order than an uninterrupted one, and a row differs in its last bits with the
    size of its batch, so every call is filled up to `slots` keys (see `icg.slots`).
    """

    def __init__(
        self, compute: Callable[[Sequence[Key]], Sequence[Tensors]], slots: int = 1, most_bytes: int = 2**29
    ) -> None:
        self._compute = compute
        self._slots = slots
        self._most = most_bytes
        self._size = 0
        self._kept: OrderedDict[Key, Tensors] = OrderedDict()

    def __call__(self, keys: Sequence[Key]) -> list[Tensors]:
        """What belongs to each of the keys."""
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        for part in chunks(len(missing), self._slots):
            some = [missing[place] for place in part]
            filled = some + some[-1:] * (self._slots - len(some))
            for key, tensors in zip(some, self._compute(filled), strict=False):
                found[key] = self._kept[key] = tensors
                self._size += _bytes(tensors)
        for key in keys:
            self._kept.move_to_end(key)
        while self._size > self._most and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self._size -= _bytes(oldest)
        return [found[key] for key in keys]


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
