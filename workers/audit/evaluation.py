"""Everything that `icg audit policy` says: the log, the policies' estimates, the click rates beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, get_args

from icg.preference import Head
from workers import embeddings
from workers.audit import offpolicy, questions
from workers.audit.offpolicy import People, Target, Targets
from workers.audit.pseudonyms import Pseudonyms
from workers.audit.views import Record, Views
from workers.exceptions import BadPart, UserError
from workers.policies import PERSONAL, Person, Rule
from workers.records import SegmentSet
from workers.releases import Releases
from workers.settings import Settings
from workers.storage import ObjectStore

POLICIES: tuple[Target, ...] = get_args(Target)
COLUMNS = ["policy", "estimator", "rate", "low", "high", "over_logged", "ess", "largest_weight", "unsupported"]


@dataclass
class Report:
    """Attributes:
    log: what the estimates stand on.
    refused: policies of which the log says nothing, one line each.
    clicks: click rates by segment and release, of all impressions, also those without a decision.
    """

    log: Record
    estimates: list[Record] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    clicks: list[Record] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        return {"log": self.log, "estimates": self.estimates, "refused": self.refused, "clicks": self.clicks}


def compare(
    settings: Settings,
    views: Views,
    policies: Sequence[str],
    since: datetime | None,
    until: datetime | None,
    *,
    reward: str = "click",
    exploration: float = 0.0,
    release: int | None = None,
) -> Report:
    """Estimates of the policies asked for, of all if none is.

    Raises:
        UserError: a policy that does not exist, or no decisions to judge by.
        StorageFault: S3 does not answer.
    """
    if unknown := set(policies) - set(POLICIES):
        raise UserError(f"no policy {', '.join(sorted(unknown))}; there are {', '.join(POLICIES)}")
    if reward not in {"click", "like"}:
        raise UserError(f"{reward!r} is no reward: click or like")
    keys = (settings.api.decision_key.get_secret_value().encode(),)
    found = offpolicy.read(views, keys, since, until, reward)
    if not found.shown:
        raise UserError(
            f"no impression with a decision of ours ({found.without} without one, {found.refused} refused): platforms "
            "echo the api's `decision` in their events"
        )
    log = offpolicy.log_of(found.shown)
    store = ObjectStore(settings.s3)
    asked: list[Target] = [policy for policy in POLICIES if policy in policies or not policies]
    people = _people(settings, store, release) if PERSONAL & set(asked) else None
    targets = Targets(views, store, _parents(store), people)
    report = Report(
        {
            "impressions": len(log),
            "people": len(set(log.user.tolist())),
            "logged_rate": float(log.reward.mean()),
            "without_decision": found.without,
            "refused_decisions": found.refused,
        },
        clicks=questions.clicks(views, since, until),
    )
    for policy in asked:
        if policy in PERSONAL and people is None:
            report.refused.append(f"policy {policy}: no preference head is released, or no user is imported")
            continue
        target = targets.probabilities(policy, found.shown, exploration)
        try:
            report.estimates += offpolicy.rows(policy, offpolicy.judge(log, target, policy))
        except UserError as error:
            report.refused.append(str(error))
    return report


def _people(settings: Settings, store: ObjectStore, number: int | None) -> People | None:
    releases = Releases(store, settings.cache)
    try:
        release = releases.release(number) if number is not None else releases.current()
    except BadPart as error:
        raise UserError(str(error)) from None
    if release is None or "preference" not in release.parts:
        return None
    head = Head.load(releases.fetch("preference", release.parts["preference"]))
    users = embeddings.load(store, head.space)
    if users is None:
        return None
    keys = Pseudonyms(settings.audit.user_key.get_secret_value())
    persons = {
        keys.key(user): (user, Person(head.space, vector))
        for user, vector in zip(users.ids, users.vectors, strict=True)
    }
    return People(head, Rule(settings.api.temperature, settings.preferences.residual_norm), persons)


def _parents(store: ObjectStore) -> dict[str, str]:
    """segment -> parent, of all sets that there ever were: ids are never given twice."""
    parents: dict[str, str] = {}
    for key in store.list("models/segments/"):
        stored = store.get(key) if key.endswith("/segments.json") else None
        if stored is not None:
            for segment in SegmentSet.decode(stored.data).segments:
                if segment.parent is not None:
                    parents[segment.segment_id] = segment.parent
    return parents
