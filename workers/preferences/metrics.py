"""What the learner tells Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from workers.preferences.learner import Learner

EVENTS = Counter("icg_preferences_events", "Behaviour events read, the bad ones included.")
OUTCOMES = Counter("icg_preferences_outcomes", "What became of them.", ["outcome"])
LAG = Gauge("icg_preferences_lag", "Messages not read yet.", ["topic", "partition"])
PENDING = Gauge("icg_preferences_pending_pairs", "Pairs that wait for a cover's sidecar.", ["partition"])
WINDOW = Gauge("icg_preferences_window_rows", "Events held for joining and dedupe.", ["partition"])
PEOPLE = Gauge("icg_preferences_people", "People with a taste or history.", ["partition"])
WATERMARK = Gauge("icg_preferences_watermark_seconds", "Greatest event time seen.", ["partition"])
CHECKPOINTS = Counter("icg_preferences_checkpoints", "Checkpoints written.")
RELEASE = Gauge("icg_preferences_release", "Release under which tastes are learned.")

TRAINED = Counter("icg_preferences_trained_pairs", "Pairs that W and b were trained on.")
RELEASES = Counter("icg_preferences_releases", "Candidates for a release.", ["verdict"])
DRIFT = Gauge("icg_preferences_drift", "Since a while ago: people (in standard deviations), scores (PSI).", ["what"])
LOSS = Gauge("icg_preferences_log_loss", "Of the last candidate and of what it was held against.", ["head"])


def outcomes(learner: Learner) -> dict[str, int]:
    """The learner's own counts, by outcome."""
    counts = learner.window.counts.as_dict()
    del counts["events"]
    return {
        **counts,
        "other_space": learner.other_space,
        "pending_dropped": learner.pending_dropped,
        "bad_tokens": learner.bad_tokens,
        "capped": learner.capped,
        "sampled": learner.sampled,
    }


def note(learner: Learner, events: int, before: dict[str, int]) -> None:
    """After a batch: what has changed since `before`."""
    EVENTS.inc(events)
    for outcome, count in outcomes(learner).items():
        OUTCOMES.labels(outcome).inc(count - before[outcome])
    partition = str(learner.partition)
    PENDING.labels(partition).set(len(learner.pending))
    WINDOW.labels(partition).set(learner.window.end - learner.window.base)
    PEOPLE.labels(partition).set(len(learner.tastes.names))
    WATERMARK.labels(partition).set(learner.window.watermark / 1e6)
