"""`icg audit policy` over real tables: a world with a known truth, a log that explores and one that does not."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import workers.settings
from icg.preference import Head
from workers import embeddings
from workers.audit import evaluation
from workers.audit.cli import app
from workers.audit.sink import Sink
from workers.audit.views import Views
from workers.decisions import Offer, Reader, choose, sign
from workers.events import NEUTRAL, BehaviorKind, CoverReady, Event, Outcome, ReadyCover, Source, UserBehavior
from workers.exceptions import UserError
from workers.messaging import Message
from workers.policies import Person, Rule, pack, probabilities
from workers.records import CoverInputs, Rendition, Sidecar, sha256, sidecar_key
from workers.releases import Releases
from workers.settings import S3, Settings
from workers.storage import ObjectStore

SEGMENTS = (NEUTRAL, "s-1", "s-2", "s-3")
ITEMS, PEOPLE, EACH = 6, 240, 12
DAY = date(2026, 11, 21)
KEY = b"icg-demo"
RNG = np.random.default_rng(3)
VECTORS = RNG.normal(0, 0.5, (PEOPLE, 8)).astype(np.float32)
COVERS = RNG.normal(0, 0.5, (ITEMS, len(SEGMENTS), 8)).astype(np.float32)
CLICKS = 1 / (1 + np.exp(1.5 - 3 * np.einsum("pd,icd->pic", VECTORS, COVERS)))  # of (person, item, cover)


def cover_id(item: int, segment: str) -> str:
    return sha256(f"item-{item}/{segment}".encode())


def offer(item: int, space: str) -> Offer:
    covers = [cover_id(item, segment) for segment in SEGMENTS]
    return Offer(SEGMENTS, covers, [""] * len(SEGMENTS), pack(COVERS[item].tolist(), 8), space)


class Tables:
    """A bucket with audit tables of a simulated log, a release and imported users."""

    def __init__(self, s3: S3, folder: Path) -> None:
        self.settings = Settings(s3=s3, cache=folder)
        self.store = ObjectStore(s3)
        self.store.ensure_bucket()
        releases = Releases(self.store, folder)
        self.space = releases.put_part("space", {"config.json": b"{}"})
        Head.start(self.space, 8).save(folder / "head")
        files = {path.name: path for path in (folder / "head").iterdir()}
        head = releases.put_part("preference", files, space=self.space)
        releases.publish({"space": self.space, "preference": head}, "a test", "preference")
        users = embeddings.Users([f"user-{k}" for k in range(PEOPLE)], VECTORS)
        embeddings.add(self.store, self.space, users)
        self.sink = Sink(self.settings)
        self.offsets: dict[str, int] = {}
        source = Source(topic="item-publish", partition=0, offset=0)
        for item in range(ITEMS):
            covers = tuple(
                ReadyCover(
                    segment_id=segment, rendition="default", cover_id=cover_id(item, segment), address="s3://b/k",
                    sha256=sha256(b"x"), width=64, height=64,
                )
                for segment in SEGMENTS
            )  # fmt: skip
            self.take(
                CoverReady(
                    item_id=f"item-{item}", item_version=1, action="ready", outcome=Outcome.DRAWN, source=source,
                    covers=covers, release=1, generation=1,
                )
            )  # fmt: skip
            for number, segment in enumerate(SEGMENTS):
                self.sidecar(item, segment, COVERS[item, number].tolist())
        self.sink.flush()

    def sidecar(self, item: int, segment: str, embedding: list[float]) -> None:
        digest = sha256(b"x")
        inputs = CoverInputs(
            item_id=f"item-{item}", item_version=1, vector_sha256=segment, base=digest, mllm=digest, adapter=digest,
            sampler={}, seed=1, rendition=Rendition(),
        )  # fmt: skip
        sidecar = Sidecar(
            cover_id=cover_id(item, segment), item_id=f"item-{item}", item_version=1, segment_id=segment, sha256=digest,
            bytes=1, inputs=inputs, rewards={}, embedding=embedding, space=self.space, release=1,
            source=Source(topic="t", partition=0, offset=0),
        )  # fmt: skip
        self.store.put_new(sidecar_key(f"item-{item}", sidecar.cover_id), sidecar.encode(), "application/json")

    def take(self, *events: Event) -> None:
        for event in events:
            offset = self.offsets[event.topic] = self.offsets.get(event.topic, -1) + 1
            stamp = int(event.time.timestamp() * 1000)
            self.sink.take([Message(event.topic, 0, offset, None, event.model_dump_json().encode(), {}, stamp)])

    def log(self, exploration: float, *, tokens: bool = True, seed: int = 0) -> None:
        """Everybody sees items under policy `segment`, and clicks as they do."""
        rng = np.random.default_rng(seed)
        for person in range(PEOPLE):
            reader = Reader(f"user-{person}", SEGMENTS[1 + person % 3])
            for visit in range(EACH):
                item = int(rng.integers(ITEMS))
                choice = choose(offer(item, self.space), reader, f"item-{item}", DAY, exploration=exploration)
                token = sign(
                    choice, KEY, item_id=f"item-{item}", generation=1, day=DAY, policy="segment",
                    segment_id=reader.segment_id,
                )  # fmt: skip
                number = offer(item, self.space).cover_ids.index(choice.cover_id or "")
                clicked = rng.random() < CLICKS[person, item, number]
                for kind in ("impression", "click") if clicked else ("impression",):
                    self.take(
                        UserBehavior(
                            event_id=f"{seed}.{person}.{visit}.{kind}", user_id=f"user-{person}",
                            item_id=f"item-{item}",
                            cover_id=choice.cover_id, segment_id=reader.segment_id, kind=BehaviorKind(kind),
                            impression_id=f"{seed}.{person}.{visit}", decision=token if tokens else None,
                            time=datetime(2026, 11, 21, 12, tzinfo=UTC),
                        )
                    )  # fmt: skip
        self.sink.flush()

    def truth(self, policy: str) -> float:
        """The click rate of a policy, by the people's own probabilities."""
        worth = []
        for person in range(PEOPLE):
            for item in range(ITEMS):
                target = np.zeros(len(SEGMENTS))
                if policy == "softmax":
                    who = Person(self.space, VECTORS[person])
                    taste = Rule().taste("softmax", who, Head.start(self.space, 8), f"user-{person}", DAY)
                    assert taste is not None
                    target = np.array(probabilities(taste, COVERS[item]))
                elif policy == "uniform":
                    target[:] = 1 / len(SEGMENTS)
                else:
                    target[0 if policy == "neutral" else 1 + person % 3] = 1
                worth.append(target @ CLICKS[person, item])
        return float(np.mean(worth))


@pytest.fixture(scope="module")
def s3_of_module(_servers) -> S3:
    return _servers.s3.model_copy(update={"bucket": "audit-policy"})


@pytest.fixture(scope="module")
def explored(s3_of_module: S3, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    tables = Tables(s3_of_module, tmp_path_factory.mktemp("cache"))
    tables.log(0.5, seed=5)
    return tables


def test_the_intervals_hold_the_truth_and_the_better_policy_is_seen_to_be_better(explored: Tables):
    report = evaluation.compare(explored.settings, Views(explored.settings.s3), [], None, None)
    assert report.refused == []
    found = {(row["policy"], row["estimator"]): row for row in report.estimates}
    assert len(found) == 3 * len(evaluation.POLICIES)
    missed = []
    for policy in ("segment", "neutral", "uniform", "softmax"):
        truth = explored.truth(policy)
        rows = [found[policy, estimator] for estimator in ("IPS", "SNIPS", "DR")]
        missed += [(policy, truth, row) for row in rows if not row["low"] <= truth <= row["high"]]
    # Of twelve intervals at 95 % one may miss, whatever the seed; how often they do is counted in test_estimators.
    assert len(missed) <= 1, missed
    assert found["logged", "IPS"]["rate"] == pytest.approx(report.log["logged_rate"])
    assert found["softmax", "DR"]["low"] > found["uniform", "DR"]["high"]
    assert found["thompson", "DR"]["rate"] > found["uniform", "DR"]["rate"]
    assert {row["segment_id"] for row in report.clicks} == set(SEGMENTS[1:])
    assert sum(row["impressions"] for row in report.clicks) == report.log["impressions"] == PEOPLE * EACH


def test_events_without_a_decision_count_for_click_rates_alone(explored: Tables):
    before = evaluation.compare(explored.settings, Views(explored.settings.s3), ["neutral"], None, None)
    explored.log(0.5, tokens=False, seed=1)
    after = evaluation.compare(explored.settings, Views(explored.settings.s3), ["neutral"], None, None)
    assert after.estimates == before.estimates
    assert after.log["impressions"] == before.log["impressions"]
    assert after.log["without_decision"] == PEOPLE * EACH
    assert sum(row["impressions"] for row in after.clicks) == 2 * PEOPLE * EACH


def test_a_token_that_is_not_ours_is_no_decision(explored: Tables):
    views = Views(explored.settings.s3)
    other = explored.settings.model_copy(
        update={"api": explored.settings.api.model_copy(update={"decision_key": workers.settings.SecretStr("another")})}
    )
    with pytest.raises(UserError, match="refused"):
        evaluation.compare(other, views, ["neutral"], None, None)


def test_a_log_that_never_explored_is_refused_and_the_command_says_how_much_is_missing(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tables = Tables(s3, tmp_path)
    tables.log(0.0)
    monkeypatch.setattr(workers.settings, "settings", lambda: tables.settings)
    done = CliRunner().invoke(app, ["policy", "uniform", "neutral", "--format", "json"])
    assert done.exit_code == 1
    assert "uniform: 75.0% of what it would show could not have been shown" in done.stderr
    assert "neutral: 100.0%" in done.stderr
    # What it did show can be judged, for that is what was seen.
    done = CliRunner().invoke(app, ["policy", "segment", "--format", "json"])
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["rate"] for row in answer["estimates"]] == pytest.approx([answer["log"]["logged_rate"]] * 3)
