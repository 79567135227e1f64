"""Numbers for names, which are what arrays can hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Names(dict[str, int]):
    """Numbers for names, given at first sight; `listed[number]` is the name."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.listed = list(names)
        super().__init__((name, number) for number, name in enumerate(self.listed) if name)  # "": forgotten

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self.listed)
        self.listed.append(name)
        return number

    def __len__(self) -> int:
        return len(self.listed)

    def forget(self, name: str) -> int | None:
        """Its number, which is not given again; None for a name that has none."""
        number = self.pop(name, None)
        if number is not None:
            self.listed[number] = ""
        return number

    def of(self, names: list[Any]) -> Ints:
        return np.fromiter(map(self.__getitem__, names), np.int64, len(names))
