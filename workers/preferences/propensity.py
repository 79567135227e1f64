"""From what was logged about an impression to its two weights: what makes shown covers comparable across people.

**Choice.** (1/k) / p, the probability of a uniform choice among the k candidates over the logged one: weighted so,
which cover was shown no longer depends on who looked. 0 where nothing was logged: such an impression is compared only
with another one of the same person.

**Position.** 1 / P(looked at), by the `position_propensity` that the platform measured (Joachims, Swaminathan and
Schnabel, "Unbiased learning-to-rank with biased feedback", 2017): an answer from a place where few look stands for more
of them. 1 where nothing was logged.
"""

from __future__ import annotations

import binascii
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.decisions import TOKEN_LIMIT
from workers.preferences.decode import IMPRESSION, Columns

MOST_CHOICE, MOST_POSITION = 3.0, 2.0
"""Clipped: few loud pairs would drown all others. With exploration of 0.1 among nine covers, nine impressions in ten
weigh 0.12 and one in ninety each 10: of n such pairs 0.13 n are worth as much as n even ones. Clipped at 3 it is
0.19 n, and a fifth of what an unweighted learner would ascribe to covers because of who looked is left; people's order
of covers is learned back faster after their tastes turned (docs/evaluation.md). Where somebody looks does not depend on
the cover, so there a clip costs no bias between covers at all."""
LEAST_CHOICE = 0.01
CACHED = 20_000
"""Tokens kept in each of two generations, about 0.7 kB a token. A token names no user, so a segment shares it."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Weights:
    """Of n events."""

    choice: Floats  # [n], 0: not logged
    position: Floats  # [n]
    bad: NDArray[np.bool_]  # [n] whose token was not ours or spoke of another cover; as if not logged

    @classmethod
    def even(cls, n: int) -> Self:
        """As of a uniform choice that was logged."""
        return cls(np.ones(n, np.float32), np.ones(n, np.float32), np.zeros(n, bool))

    def take(self, rows: NDArray[np.int64]) -> Weights:
        return Weights(self.choice[rows], self.position[rows], self.bad[rows])

    def span(self, start: int, end: int) -> Weights:
        return Weights(self.choice[start:end], self.position[start:end], self.bad[start:end])


class _Payload(msgspec.Struct):
    """What is needed of `decisions.sign`'s."""

    i: str
    x: str
    n: int
    w: float


_payload = msgspec.json.Decoder(_Payload).decode
_STANDARD = bytes.maketrans(b"-_", b"+/")


class Tokens:
    """Reads decision tokens; one that was read before costs a look into a dict."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)
        self._new: dict[str, tuple[str, str, float]] = {}
        self._old: dict[str, tuple[str, str, float]] = {}

    def weights(self, batch: Columns) -> Weights:
        """Weights of a batch. Only impressions are asked: a click's echo says the same."""
        n = len(batch)
        choice, bad = np.zeros(n, np.float32), np.zeros(n, bool)
        held = batch.kind == IMPRESSION if any(batch.decision) else bad
        for row in np.flatnonzero(held).tolist():
            token = batch.decision[row]
            if token is None:
                continue
            known = self._new.get(token) or self._read(token)
            if known[0] == batch.cover[row] and known[1] == batch.item[row]:
                choice[row] = known[2]
            else:
                bad[row] = True
        if not any(batch.position_propensity):
            return Weights(choice, np.ones(n, np.float32), bad)
        position = np.array(batch.position_propensity, np.float32)
        position = np.minimum(np.float32(MOST_POSITION), 1 / np.where(np.isnan(position), np.float32(1), position))
        return Weights(choice, position, bad)

    def _read(self, token: str) -> tuple[str, str, float]:
        """Cover, item and weight; ("", "", 0) for what is not ours."""
        found = self._old.get(token) or self._verified(token)
        self._new[token] = found
        if len(self._new) >= CACHED:
            self._old, self._new = self._new, {}
        return found

    def _verified(self, token: str) -> tuple[str, str, float]:
        body_text, _, mac_text = token.partition(".")
        try:
            body, mac = _bytes(body_text), _bytes(mac_text)
            if len(token) > TOKEN_LIMIT or not any(
                hmac.compare_digest(hmac.digest(key, body, "sha256"), mac) for key in self._keys
            ):
                return _NOT_OURS
            payload = _payload(body)
            weight = 1 / (payload.n * payload.w)
        except (binascii.Error, ValueError, ZeroDivisionError):  # msgspec's errors are ValueErrors
            return _NOT_OURS
        if weight <= 0:
            return _NOT_OURS
        return payload.x, payload.i, min(MOST_CHOICE, max(LEAST_CHOICE, weight))


_NOT_OURS = ("", "", 0.0)


def _bytes(text: str) -> bytes:
    """Of URL-safe base64 without its padding. The signature is over these bytes, so their spelling proves nothing."""
    data = text.encode("ascii").translate(_STANDARD)
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)
