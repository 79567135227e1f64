"""`icg audit policy`: decisions from the audit tables, and what another policy would have made of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Literal

import numpy as np

from icg.preference import Head
from workers.audit.estimators import Estimates, Floats, Log, estimate, unsupported
from workers.audit.views import Record, Views
from workers.decisions import BadToken, Decision, verify
from workers.events import NEUTRAL
from workers.exceptions import UserError
from workers.policies import PERSONAL, Person, Rule, probabilities
from workers.records import Sidecar, sidecar_key
from workers.settings import Policy
from workers.storage import ObjectStore

Target = Literal["logged", "segment", "neutral", "uniform", "softmax", "thompson"]

MOST_UNSUPPORTED = 0.01
"""Share of a policy's choices that the log may be silent about: as many of the clicks may be wrong, and no more."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An impression with a decision of ours."""

    user_key: str
    decision: Decision
    reward: float


@dataclass(slots=True)
class Decisions:
    """What the tables hold, and what of it cannot be used."""

    shown: list[Shown] = field(default_factory=list)
    without: int = 0  # impressions without a token: they count for click rates and never here
    refused: int = 0  # with a token that is not ours, or speaks of another cover


def read(views: Views, keys: tuple[bytes, ...], since: datetime | None, until: datetime | None, kind: str) -> Decisions:
    """Impressions, each once, with their decision and whether an answer of this kind followed."""
    rows = views.records(
        """
        with seen as (select coalesce(impression_id, event_id) as id, min_by(user_key, kafka_time) as user_key,
                             min_by(item_id, kafka_time) as item_id, min_by(cover_id, kafka_time) as cover_id,
                             min_by(decision, kafka_time) as decision
                      from user_behavior where kind = 'impression' and time >= $since and time < $until group by id),
        answered as (select distinct impression_id as id from user_behavior where kind = $kind and time >= $since)
        select seen.*, answered.id is not null as reward from seen left join answered using (id) order by seen.id
        """,
        {
            "since": since or datetime(1, 1, 1, tzinfo=UTC),
            "until": until or datetime(9999, 1, 1, tzinfo=UTC),
            "kind": kind,
        },
    )
    found = Decisions()
    known: dict[str, Decision | None] = {}
    for row in rows:
        token = row["decision"]
        if token is None:
            found.without += 1
            continue
        if token not in known:
            known[token] = _verified(token, keys)
        decision = known[token]
        if decision is None or (decision.item_id, decision.chosen) != (row["item_id"], row["cover_id"]):
            found.refused += 1
        else:
            found.shown.append(Shown(row["user_key"], decision, float(row["reward"])))
    return found


def _verified(token: str, keys: tuple[bytes, ...]) -> Decision | None:
    try:
        decision = verify(token, keys)
    except BadToken:
        return None
    return decision if decision.propensity > 0 and decision.candidates else None


def log_of(shown: Iterable[Shown]) -> Log:
    """The impressions as columns. A listed candidate is known by its item and prefix."""
    users: dict[str, int] = {}
    covers: dict[tuple[str, str], int] = {}
    cells: dict[tuple[str | None, int], int] = {}
    user, start, at, cover, cell = [], [0], [], [], []
    reward: list[float] = []
    propensity: list[float] = []
    for each in shown:
        decision = each.decision
        index = next((k for k, prefix in enumerate(decision.candidates) if decision.chosen.startswith(prefix)), None)
        candidates, propensities = decision.candidates, decision.propensities
        if index is None:  # of many candidates only the most probable are listed
            candidates, propensities = (*candidates, decision.chosen), (*propensities, decision.propensity)
            index = len(candidates) - 1
        user.append(users.setdefault(each.user_key, len(users)))
        reward.append(each.reward)
        at.append(start[-1] + index)
        for name in candidates:
            number = covers.setdefault((decision.item_id, name), len(covers))
            cover.append(number)
            cell.append(cells.setdefault((decision.segment_id, number), len(cells)))
        propensity.extend(propensities)
        start.append(start[-1] + len(candidates))
    counts = [np.array(column, np.int64) for column in (user, start, at, cover, cell)]
    return Log(counts[0], np.array(reward), counts[1], counts[2], np.array(propensity), counts[3], counts[4])


@dataclass(frozen=True)
class People:
    """For personal policies: who is behind a user_key, and the head that judges.

    The vectors are the imported ones. What was learned on top of them was learned from the very clicks in the log.
    """

    head: Head
    rule: Rule
    persons: Mapping[str, tuple[str, Person]]  # user_key -> user_id, vector


class Targets:
    """A policy's probabilities of the candidates of logged decisions."""

    def __init__(
        self, views: Views, store: ObjectStore, parents: Mapping[str, str], people: People | None = None
    ) -> None:
        self._store, self._parents, self._people = store, parents, people
        self._offers = _offers(views)
        self._embeddings: dict[str, Any] = {}
        self._tastes: dict[tuple[str, str, str], Any] = {}

    def probabilities(self, policy: Target, shown: list[Shown], exploration: float = 0.0) -> Floats:
        """[m], aligned with `log_of(shown)`. All 0 where the policy's choice is no candidate: no support."""
        if policy in PERSONAL:
            self._read_embeddings(shown)
        return np.concatenate([self._of(policy, each, exploration) for each in shown])

    def _of(self, policy: Target, shown: Shown, exploration: float) -> Floats:
        decision = shown.decision
        listed = [*decision.candidates]
        if not any(decision.chosen.startswith(prefix) for prefix in listed):
            listed.append(decision.chosen)
        if policy == "logged":
            given = [*decision.propensities, decision.propensity]
            return np.array(given[: len(listed)])
        uniform = np.full(len(listed), 1 / decision.count)
        if policy == "uniform":
            return uniform
        found = self._personal(policy, shown, listed) if policy in PERSONAL else None
        if found is None:
            best = self._best(decision, listed, policy)
            found = np.array([float(prefix == best) for prefix in listed])
        return (1 - exploration) * found + exploration * uniform

    def _best(self, decision: Decision, listed: list[str], policy: Target) -> str | None:
        """Own segment > parent > neutral, as far as they were candidates."""
        offer = self._offers.get((decision.item_id, decision.generation), {})
        own = decision.segment_id
        chain = [own, self._parents.get(own or ""), NEUTRAL] if policy != "neutral" else [NEUTRAL]
        for segment in chain:
            cover = offer.get(segment or "")
            prefix = next((each for each in listed if cover is not None and cover.startswith(each)), None)
            if prefix is not None:
                return prefix
        return None

    def _personal(self, policy: Target, shown: Shown, listed: list[str]) -> Floats | None:
        """None where the api would have fallen back to the segment's cover."""
        assert self._people is not None
        person = self._people.persons.get(shown.user_key)
        decision = shown.decision
        covers = self._full(decision, listed)
        if person is None or len(listed) < 2 or any(cover not in self._embeddings for cover in covers):
            return None
        asked = (policy, shown.user_key, decision.day)
        if asked not in self._tastes:
            name: Policy = "softmax" if policy == "softmax" else "thompson"
            day = date.fromisoformat(decision.day)
            self._tastes[asked] = self._people.rule.taste(name, person[1], self._people.head, person[0], day)
        if (taste := self._tastes[asked]) is None:
            return None
        found = probabilities(taste, np.stack([self._embeddings[cover] for cover in covers]))
        return None if found is None else np.array(found)

    def _full(self, decision: Decision, listed: list[str]) -> list[str]:
        offer = set(self._offers.get((decision.item_id, decision.generation), {}).values())
        return [next((cover for cover in offer if cover.startswith(prefix)), prefix) for prefix in listed]

    def _read_embeddings(self, shown: list[Shown]) -> None:
        assert self._people is not None
        space = self._people.head.space
        wanted = {
            (decision.item_id, cover)
            for decision in {id(each.decision): each.decision for each in shown}.values()
            for cover in self._full(decision, [*decision.candidates])
        }

        def one(place: tuple[str, str]) -> Sidecar | None:
            stored = self._store.get(sidecar_key(*place)) if len(place[1]) == 64 else None
            return Sidecar.decode(stored.data) if stored else None

        with ThreadPoolExecutor(16) as threads:
            for sidecar in threads.map(one, sorted(wanted)):
                if sidecar is not None and sidecar.space == space:
                    # As the api reads them from Feast.
                    self._embeddings[sidecar.cover_id] = np.array(sidecar.embedding, np.float16).astype(np.float32)


def _offers(views: Views) -> dict[tuple[str, int], dict[str, str]]:
    """(item, generation) -> segment -> its own cover."""
    offers: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for row in views.records(
        "select distinct item_id, generation, segment_id, cover_id from cover_ready "
        "where cover_id is not null and fallback is null and rendition = 'default'"
    ):
        offers[row["item_id"], row["generation"]][row["segment_id"]] = row["cover_id"]
    return offers


def judge(log: Log, target: Floats, policy: str, *, most: float = MOST_UNSUPPORTED, draws: int = 1000) -> Estimates:
    """The estimates of one policy.

    Raises:
        UserError: the log gives it no support.
    """
    share = unsupported(log, target)
    if share > most:
        raise UserError(
            f"the log says nothing of policy {policy}: {share:.1%} of what it would show could not have been shown "
            f"(at most {most:.1%}); log with more exploration (ICG_API_EXPLORATION)"
        )
    return estimate(log, target, draws=draws)


def rows(policy: str, found: Estimates) -> Iterator[Record]:
    """One row an estimator."""
    for name in ("dr", "snips", "ips"):
        each = getattr(found, name)
        lift = each.value / found.logged.value - 1 if found.logged.value else None
        yield {
            "policy": policy,
            "estimator": name.upper(),
            "rate": each.value,
            "low": each.low,
            "high": each.high,
            "over_logged": lift,
            "ess": round(found.ess),
            "largest_weight": found.largest_weight,
            "unsupported": found.unsupported,
        }
