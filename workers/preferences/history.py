"""The last covers that people liked, as linked lists in flat arrays: 12 B a like instead of a Python tuple's 150."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Places = NDArray[np.int32]
KEPT = 50
"""Likes kept of a person."""


class History:
    """Codes by person, both numbers of the caller's."""

    def __init__(self) -> None:
        self._newest: Places = np.full(1024, -1, np.int32)  # by person: the place of their last like
        self._code: Ints = np.zeros(1024, np.int64)
        self._before: Places = np.zeros(1024, np.int32)  # the place of the same person's like before, -1: none
        self._used = 0
        self._lost = 0  # places that no list reaches any more

    def of(self, person: int) -> list[int]:
        """What a person liked, the newest last."""
        codes: list[int] = []
        place = int(self._newest[person]) if person < len(self._newest) else -1
        while place >= 0 and len(codes) < KEPT:
            codes.append(int(self._code[place]))
            place = int(self._before[place])
        return codes[::-1]

    def add(self, person: int, code: int) -> None:
        """The newest like; one of the same before moves up."""
        codes = self.of(person)
        if code in codes:
            codes.remove(code)
            self._write(person, codes)
        elif len(codes) == KEPT:
            self._lost += 1
        self._append(person, code)

    def drop(self, person: int, code: int) -> bool:
        """Take a like back; whether there was one."""
        codes = self.of(person)
        if code not in codes:
            return False
        codes.remove(code)
        self._write(person, codes)
        return True

    def forget(self, person: int) -> None:
        """Every like of a person. What no list reaches any more would still be in a checkpoint, so it is tidied."""
        if person < len(self._newest):
            self._newest[person] = -1
            self._tidy()

    def _tidy(self) -> None:
        lists = {person: self.of(person) for person in np.flatnonzero(self._newest >= 0).tolist()}
        self._newest[:] = -1
        self._used = self._lost = 0
        for person, codes in lists.items():
            for code in codes:
                self._append(person, code)

    def _write(self, person: int, codes: list[int]) -> None:
        self._lost += len(codes) + 1
        self._newest[person] = -1
        for code in codes:
            self._append(person, code)

    def _append(self, person: int, code: int) -> None:
        if self._used == len(self._code):
            self._make_room()
        if person >= len(self._newest):
            more = np.full(max(len(self._newest), person + 1 - len(self._newest)), -1, np.int32)
            self._newest = np.concatenate([self._newest, more])
        self._code[self._used], self._before[self._used] = code, self._newest[person]
        self._newest[person] = self._used
        self._used += 1

    def _make_room(self) -> None:
        if 2 * self._lost > self._used:
            self._tidy()
        else:
            more = len(self._code) // 4  # not as many again: at most a fifth of it is empty
            self._code = np.concatenate([self._code, np.zeros(more, np.int64)])
            self._before = np.concatenate([self._before, np.zeros(more, np.int32)])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, for a checkpoint."""
        return {
            "newest": self._newest,
            "code": self._code[: self._used],
            "before": self._before[: self._used],
            "lost": np.array([self._lost], np.int64),
        }

    @classmethod
    def restored(cls, arrays: dict[str, NDArray[Any]]) -> History:
        """From `arrays`."""
        history = cls()
        history._newest = arrays["newest"].astype(np.int32)
        history._code = np.concatenate([arrays["code"].astype(np.int64), np.zeros(1024, np.int64)])
        history._before = np.concatenate([arrays["before"].astype(np.int32), np.zeros(1024, np.int32)])
        history._used, history._lost = len(arrays["code"]), int(arrays["lost"][0])
        return history
