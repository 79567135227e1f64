"""Calls of a fixed size.

A matrix product of 3 rows may add its terms in another order than one of 8 (measured: one sample differs by 2e-6
between batch sizes) and is bit-equal at a fixed size whoever the neighbours are. So every call that decides pixels or
rewards is padded to the same number of slots, and what comes out does not depend on how full the batch was.

The number of torch threads has the same effect (measured: 1 and 2 threads differ in the last bit of some pixels): a
machine that is to give the same bytes again has to keep it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch


def chunks(rows: int, slots: int) -> Iterator[range]:
    """`rows` in order, at most `slots` at a time."""
    for start in range(0, rows, slots):
        yield range(start, min(start + slots, rows))


def pad(tensor: torch.Tensor, slots: int) -> torch.Tensor:
    """[n, …] to [slots, …]: the last row again, since zeros may be no input that a network was made for."""
    missing = slots - len(tensor)
    if missing < 0:
        raise ValueError(f"{len(tensor)} rows do not fit into {slots} slots")
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor


def in_slots(call: Callable[..., torch.Tensor], slots: int, *tensors: torch.Tensor) -> torch.Tensor:
    """`call` over rows of `tensors`, `slots` at a time; [n, …] each in, [n, …] out."""
    parts = []
    for part in chunks(len(tensors[0]), slots):
        padded = (pad(tensor[part.start : part.stop], slots) for tensor in tensors)
        parts.append(call(*padded)[: len(part)])
    return torch.cat(parts)
