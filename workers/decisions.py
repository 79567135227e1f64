"""Which cover a person is shown, with what propensity, and the signed token that says so. Pure: no I/O, no clock.

A decision has two stages. A *policy* turns the covers of an item into probabilities; with probability ε the choice is
made uniformly among the distinct covers instead, so that every cover keeps support. Both draws are hashes of
(user, item, policy, day): the same person sees the same cover all day, on every replica, without any state.

`race` draws from any distribution and moves as few people as it can when that distribution changes a little: a taste
that was learned at noon moves only those whose cover it makes more or less likely. The policies are in
`workers.policies`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from hashlib import blake2b
from math import log
from typing import Any, Literal, NamedTuple

import orjson

from workers.events import NEUTRAL
from workers.policies import Taste, Worth, shares, worths
from workers.settings import Policy

Served = Literal["segment", "parent", "neutral", "reference", "other", "exploration"]
"""Whose cover the answer is: of the person's own segment, its parent, of nobody in particular, the platform's own
reference image, or of some other segment: because the policy liked it for this person, or by exploration alone."""

Fallback = Literal["anonymous", "user_unknown", "personalization_off", "no_cover", "gate", "blocked"]
"""Why the answer is not the own segment's cover: the first miss on the chain."""

from_bytes = int.from_bytes

TOKEN_LIMIT = 4096
"""Characters that `UserBehavior.decision` takes."""
MOST_LISTED = 64
"""Candidates named in a token: 64 x (16 + 26 characters) and 700 of the rest, x 4/3 for base64, is 4 kB less 500."""
SHORTEST_PREFIX = 12


class Offer(NamedTuple):
    """The covers that an item has, one entry a segment, as parallel lists (a Feast row is read as it is).

    `fallbacks[k]` is empty where segment k has a cover of its own, else what stands in for it. A named tuple, as are
    the other values of which a page makes 200: a frozen dataclass takes five times as long to make.
    """

    segment_ids: Sequence[str]
    cover_ids: Sequence[str]
    fallbacks: Sequence[str]
    embeddings: bytes = b""
    """One a cover, as `workers.policies.pack` writes them; empty where they are not known."""
    space: str = ""
    """In which they mean something."""

    def usable(self, blocked: frozenset[str]) -> dict[str, str]:
        """segment_id -> cover_id, where the segment has a cover of its own and nobody blocked it."""
        return {
            segment: cover
            for segment, cover, fallback in zip(self.segment_ids, self.cover_ids, self.fallbacks, strict=True)
            if not fallback and cover not in blocked
        }

    def reference(self, blocked: frozenset[str]) -> str | None:
        """The platform's own picture as a cover in our size and format, where `covers` has made one."""
        for cover, fallback in zip(self.cover_ids, self.fallbacks, strict=True):
            if fallback == "reference" and cover not in blocked:
                return cover
        return None

    def why_not(self, segment_id: str) -> Fallback:
        """Why `usable` does not name this segment."""
        for segment, fallback in zip(self.segment_ids, self.fallbacks, strict=True):
            if segment == segment_id:
                return "gate" if fallback else "blocked"
        return "no_cover"


@dataclass(frozen=True, slots=True)
class Reader:
    """For whom a cover is chosen, and by which policy.

    Without `user_id` nothing is explored: one answer stands for a whole segment. Without `taste` every policy is
    `segment`.
    """

    user_id: str | None = None
    segment_id: str | None = None
    parent: str | None = None
    policy: Policy = "segment"
    taste: Taste | None = None


class Choice(NamedTuple):
    """What is shown. `cover_id` None: the reference image as the platform gave it, if it gave one.

    `propensities` are exact, one a candidate, and sum to 1; `cover_segment` is the segment that the picture was drawn
    for.
    """

    cover_id: str | None
    cover_segment: str | None
    served: Served
    fallback: Fallback | None
    candidates: tuple[str, ...] = ()
    propensities: tuple[float, ...] = ()


def choose(
    offer: Offer,
    reader: Reader,
    item_id: str,
    day: date,
    *,
    exploration: float = 0.0,
    blocked: frozenset[str] = frozenset(),
    personalization: bool = True,
    worth: Worth | None = None,
) -> Choice:
    """Choose one cover by the reader's policy, explored with probability ε.

    `segment`, and what stands in for the others: own segment > parent > neutral > reference image.

    Args:
        worth: of the offer's covers to this reader, where `page_worths` has made it for a page; else it is made here.
    """
    usable = offer.usable(blocked)
    if not personalization:
        # Exploring would show covers drawn for segments, so there is one candidate.
        usable = {NEUTRAL: usable[NEUTRAL]} if NEUTRAL in usable else {}
    best_segment, served, fallback = _resolve(offer, usable, reader, personalization)
    if best_segment is None:
        return Choice(offer.reference(blocked), None, "reference", fallback)
    best = usable[best_segment]

    candidates = tuple(dict.fromkeys(usable.values()))
    epsilon = exploration if reader.user_id is not None else 0.0
    base = _policy(offer, candidates, best, reader.taste if personalization else None, worth)
    kept, uniform = 1 - epsilon, epsilon / len(candidates)
    propensities = tuple([kept * p + uniform for p in base])

    key = blake2b("\n".join((reader.user_id or "", item_id, reader.policy, day.isoformat())).encode()).digest()
    explores = _unit(key) < epsilon
    chosen = race(candidates, [1.0] * len(candidates) if explores else base, key)
    if chosen == best:
        return Choice(best, best_segment, served, fallback, candidates, propensities)
    segment = next(segment for segment, cover in usable.items() if cover == chosen)
    other: Served = "exploration" if explores else "other"
    return Choice(chosen, segment, _relation(segment, reader, other), fallback, candidates, propensities)


def page_worths(offers: Sequence[Offer], taste: Taste | None) -> list[Worth | None]:
    """What a reader's taste makes of the covers of many items at once, for `choose`."""
    if taste is None:
        return [None] * len(offers)
    known = [offer.embeddings if offer.space == taste.space else b"" for offer in offers]
    return worths(taste, known, [len(offer.cover_ids) for offer in offers])


def _policy(
    offer: Offer, candidates: tuple[str, ...], best: str, taste: Taste | None, worth: Worth | None
) -> list[float]:
    """The policy's own distribution over the candidates, before exploration."""
    if taste is not None and len(candidates) > 1:
        if worth is None:
            worth = page_worths([offer], taste)[0]
        if worth is not None:
            found = worth.shares
            if candidates != tuple(offer.cover_ids):  # some are blocked, or stand in for several segments
                row = {cover: index for index, cover in enumerate(offer.cover_ids)}
                found = shares(taste.policy, worth.rows[[row[candidate] for candidate in candidates]])
            if found is not None:
                return found
    return [1.0 if candidate == best else 0.0 for candidate in candidates]


def race(candidates: Sequence[str], weights: Sequence[float], key: bytes) -> str:
    """Draw a candidate with probability proportional to its weight, the same one for the same key.

    Exponential race: candidate c arrives at -ln(u_c) / w_c with u_c = hash(key, c), the first one wins. A candidate
    that comes, goes or changes its weight moves only the keys that it wins or loses.
    """
    running = [(c, w) for c, w in zip(candidates, weights, strict=True) if w > 0]
    winner, soonest = running[0][0], math.inf
    if len(running) == 1:
        return winner
    for candidate, weight in running:  # 1,800 a page: what is called here is paid for
        digest = blake2b(candidate.encode(), key=key, digest_size=8).digest()
        arrives = -log(((from_bytes(digest, "big") >> 11) + 0.5) * 2.0**-53) / weight  # `_unit`, written out
        if arrives < soonest:
            winner, soonest = candidate, arrives
    return winner


def _resolve(
    offer: Offer, usable: dict[str, str], reader: Reader, personalization: bool
) -> tuple[str | None, Served, Fallback | None]:
    """The fallback chain: whose cover is best for this reader, and why it is not the own segment's."""
    own = reader.segment_id if personalization else None
    fallback: Fallback | None = None
    if not personalization:
        fallback = "personalization_off"
    elif own is None:
        fallback = "user_unknown" if reader.user_id is not None else "anonymous"
    elif own in usable:
        return own, "neutral" if own == NEUTRAL else "segment", None
    else:
        fallback = offer.why_not(own)
        if reader.parent is not None and reader.parent in usable and reader.parent != NEUTRAL:
            return reader.parent, "parent", fallback
    if NEUTRAL in usable:
        return NEUTRAL, "neutral", fallback
    return None, "reference", fallback


def _relation(segment: str, reader: Reader, other: Served) -> Served:
    if segment == NEUTRAL:
        return "neutral"
    if segment == reader.segment_id:
        return "segment"
    return "parent" if segment == reader.parent else other


def _unit(digest: bytes) -> float:
    """A hash as a number in (0, 1): 53 bits, the middle of its bin, so that its logarithm exists."""
    return ((int.from_bytes(digest[:8], "big") >> 11) + 0.5) * 2.0**-53


# --- The token -------------------------------------------------------------------------------------------------------


class BadToken(ValueError):
    """Not a decision of ours: damaged, forged, or signed with a key that we do not hold."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a token carries.

    `candidates` are prefixes of cover ids, all of one length (at least 12) at which they are distinct *within this
    item*; `chosen` is a full cover_id, `propensity` its probability. Where an item has more than 64 candidates,
    the most probable are listed and `count` says how many there were.
    """

    policy: str
    generation: int
    item_id: str
    day: str
    segment_id: str | None
    chosen: str
    propensity: float
    candidates: tuple[str, ...]
    propensities: tuple[float, ...]
    count: int
    key_id: str


@cache
def key_id(key: bytes) -> str:
    """Names a key without telling it."""
    return hashlib.sha256(b"icg decision key\n" + key).hexdigest()[:8]


def short_ids(cover_ids: Sequence[str], shortest: int = SHORTEST_PREFIX) -> list[str]:
    """Prefixes of one length at which the ids are distinct."""
    short = [cover[:shortest] for cover in cover_ids]
    if len(set(short)) == len(set(cover_ids)):
        return short
    return short_ids(cover_ids, shortest + 2)


def sign(
    choice: Choice, key: bytes, *, item_id: str, generation: int, day: date, policy: str, segment_id: str | None = None
) -> str | None:
    """The token of a choice; None for the reference image, which nobody chose.

    URL-safe base64 of canonical JSON, a dot, URL-safe base64 of its HMAC-SHA256. It names no user.
    """
    if choice.cover_id is None or not choice.candidates:
        return None
    propensity = choice.propensities[choice.candidates.index(choice.cover_id)]
    candidates: Sequence[str] = short_ids(choice.candidates)
    propensities: Sequence[float] = choice.propensities
    if len(candidates) > MOST_LISTED:
        listed = sorted(zip(candidates, propensities, strict=True), key=lambda entry: -entry[1])[:MOST_LISTED]
        candidates, propensities = zip(*listed, strict=True)
    payload = {
        "c": candidates,
        "d": day.isoformat(),
        "g": generation,
        "i": item_id,
        "k": key_id(key),
        "n": len(choice.candidates),
        "p": policy,
        "q": propensities,
        "s": segment_id,
        "w": propensity,
        "x": choice.cover_id,
    }
    body = orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)
    return f"{_encode(body)}.{_encode(hmac.digest(key, body, 'sha256'))}"


def verify(token: str, keys: bytes | Iterable[bytes]) -> Decision:
    """Read a token signed with one of the keys (the newest, and the ones it replaced).

    Raises:
        BadToken: for anything else, whatever it is.
    """
    if not isinstance(token, str) or len(token) > TOKEN_LIMIT:
        raise BadToken("a decision token is a text of at most 4096 characters")
    body_text, dot, mac_text = token.partition(".")
    if not dot:
        raise BadToken("a decision token has two parts")
    body, mac = _decode(body_text), _decode(mac_text)
    held = (keys,) if isinstance(keys, bytes) else tuple(keys)
    if not any(hmac.compare_digest(hmac.digest(key, body, "sha256"), mac) for key in held):
        raise BadToken("the signature is not ours")
    try:
        return _decision(orjson.loads(body))
    except (KeyError, TypeError, ValueError) as error:
        raise BadToken(f"signed by us, yet not a decision: {type(error).__name__}") from None


def _decision(payload: dict[str, Any]) -> Decision:
    return Decision(
        policy=str(payload["p"]),
        generation=int(payload["g"]),
        item_id=str(payload["i"]),
        day=str(payload["d"]),
        segment_id=payload["s"],
        chosen=str(payload["x"]),
        propensity=float(payload["w"]),
        candidates=tuple(payload["c"]),
        propensities=tuple(map(float, payload["q"])),
        count=int(payload["n"]),
        key_id=str(payload["k"]),
    )


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def _encode(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).translate(_URL_SAFE, b"=").decode()


def _decode(text: str) -> bytes:
    try:
        # Strict, so that no two texts are one token: alien characters and stray padding are refused.
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadToken("a decision token is URL-safe base64") from None
    if _encode(data) != text:
        raise BadToken("a decision token is URL-safe base64 in its one spelling")
    return data
