"""What a window finds: who preferred which cover, and which answers found their impression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.preferences.names import Ints


@dataclass(frozen=True, slots=True)
class Couples:
    """Who preferred what: the winner's cover under the winner's eyes beats the loser's under the loser's."""

    winner: Ints  # user, as the window's index
    loser: Ints
    item: Ints
    chosen: Ints  # cover, as the window's index
    rejected: Ints
    weight: NDArray[np.float32]  # of the answer: its kind, over the propensity of its position
    chosen_weight: NDArray[np.float32]  # of each side: inverse propensity of the cover's choice, over a uniform one's
    rejected_weight: NDArray[np.float32]
    won: NDArray[np.bool_]  # the winner answered; else the loser did, by a dislike
    hash: NDArray[np.uint64]  # of the answered impression's event id
    time: Ints
    place: Ints  # number of the row at which the couple was complete

    def __len__(self) -> int:
        return len(self.winner)


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers that found their impression, for the users' histories."""

    user: Ints
    item: Ints
    cover: Ints
    kind: Ints
    place: Ints  # number of the later row of both

    def __len__(self) -> int:
        return len(self.user)


_NONE = np.empty(0, np.int64)
_NO_FLOATS = np.empty(0, np.float32)
NO_COUPLES = Couples(
    *(_NONE,) * 5, *(_NO_FLOATS,) * 3, won=np.empty(0, bool), hash=np.empty(0, np.uint64), time=_NONE, place=_NONE
)
NO_ANSWERS = Answers(_NONE, _NONE, _NONE, _NONE, _NONE)
