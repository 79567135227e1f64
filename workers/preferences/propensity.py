"""From a decision's token to the weight of an impression: what makes shown covers comparable across people.

The weight is (1/k) / p, the probability of a uniform choice among the k candidates over the logged one: weighted so,
which cover was shown no longer depends on who looked. It is 1 where nothing was logged.

Left out so far: the propensity of the position, a second field and a second weight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.decisions import BadToken, verify
from workers.preferences.decode import IMPRESSION, Columns

LEAST, MOST = 0.1, 10.0
"""Clipped: a rarely explored cover may not speak louder than ten, at the price of a small bias."""


def weights(batch: Columns, keys: tuple[bytes, ...]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Weight of each event, and whose token was not ours or spoke of another cover (weight 1).

    About 7 µs a token, most of it the signature. Only impressions are asked: a click's echo says the same.
    """
    found = np.ones(len(batch), np.float32)
    bad = np.zeros(len(batch), bool)
    tokens = np.fromiter(map(bool, batch.decision), bool, len(batch))
    for row in np.flatnonzero(tokens & (batch.kind == IMPRESSION)).tolist():
        token = batch.decision[row]
        try:
            decision = verify(token or "", keys)
        except BadToken:
            bad[row] = True
            continue
        if decision.chosen != batch.cover[row] or decision.item_id != batch.item[row] or decision.propensity <= 0:
            bad[row] = True
            continue
        found[row] = min(MOST, max(LEAST, 1 / (decision.count * decision.propensity)))
    return found, bad
