"""Realignment: each promoted preference revision continues the adapter's reward training, and a judge lets it pass.

A revision is handled in a folder of its own: which parts it began with (`job.json`), the training's checkpoint, the
adapter. How it ended is a line of `verdicts.jsonl`. All of it is resumed: SIGTERM saves a checkpoint, and a restart
goes on with the same parts. A revision with a verdict is not tried again, refused or not.

    released     the judge's gain over the adapter in force is not under −margin, with 95 %, and no more covers fail
                 the quality gate than `LEAST_KEPT` allows
    refused      otherwise; nothing is released
    overtaken    somebody else released another adapter or space meanwhile, or a newer preference revision came first
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import Counter, Gauge

from workers.exceptions import Stopped, UserError
from workers.following import ReleaseFollower
from workers.health import Health
from workers.messaging import Producer
from workers.reachable import Reachable
from workers.records import Part, Release
from workers.releases import Releases
from workers.settings import Settings
from workers.storage import ObjectStore, retrying

if TYPE_CHECKING:  # torch
    from icg.alignment.stages import Realigned

VERDICTS = Counter("icg_align_verdicts", "Promoted preference revisions, by how they ended.", ["outcome"])
TRAINING = Gauge("icg_align_training", "1 while an adapter is trained and judged.")
GAIN = Gauge("icg_align_judge_gain", "Of the last adapter over the one before it, in standard deviations.", ["end"])
RELEASE = Gauge("icg_align_release", "Release that was handled last.")

LEAST_KEPT = 0.98
"""Share of the covers that passed the quality gate before which have to pass it still."""
PARTS: tuple[Part, ...] = ("base", "mllm", "adapter", "rewards", "space", "preference")


@dataclass(frozen=True)
class Plan:
    """What is trained on, how, and where."""

    catalogue: Path
    choices: Path
    folder: Path
    judge: Path
    validation: Path | None = None
    steps: int = 300
    batch: int = 16
    rate: float = 1e-4
    pull: float = 1.0
    margin: float = 0.05
    watched: int = 24
    device: str = "cpu"
    size: int = 64
    sampler_steps: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """How a promoted revision ended."""

    preference: str
    outcome: Literal["released", "refused", "overtaken"]
    why: str
    adapter: str | None = None
    release: int | None = None
    figures: Mapping[str, float] | None = None

    def __str__(self) -> str:
        of = f", adapter {self.adapter[:12]}" if self.adapter else ""
        of += f", release {self.release}" if self.release else ""
        return f"preference {self.preference[:12]}: {self.outcome}{of}: {self.why}"


class Aligner:
    """From releases to verdicts, one at a time.

    Args:
        retrying: calls until S3 answers.
    """

    def __init__(self, releases: Releases, plan: Plan, retrying: Callable[[Callable[[], Any], str], Any]) -> None:
        self._releases, self._plan, self._retrying = releases, plan, retrying
        plan.folder.mkdir(parents=True, exist_ok=True)
        self._path = plan.folder / "verdicts.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._ended = {str(json.loads(line)["preference"]) for line in lines if line.endswith("}")}

    def step(self) -> list[Verdict]:
        """Handle the release in force, if its preference revision was promoted and has no verdict yet.

        Raises:
            UserError: data or model are not what they should be.
            KeyboardInterrupt: told to stop; what was trained is kept.
        """
        release = self._retrying(self._releases.current, "read the release")
        if release is None or any(part not in release.parts for part in PARTS):
            return []
        RELEASE.set(release.number)
        revision = release.parts["preference"]
        if revision in self._ended:
            return []
        card = self._retrying(lambda: self._releases.card("preference", revision), "read the card")
        if "preference" not in card.parents:
            return []  # what the adapter was made with
        made = [
            self._note(Verdict(old, "overtaken", f"{revision[:12]} is newer")) for old in self._unfinished(revision)
        ]
        return [*made, self._note(self._handle(revision, self._parts(revision, release)))]

    def _unfinished(self, but: str) -> list[str]:
        found = [json.loads(path.read_text())["preference"] for path in sorted(self._plan.folder.glob("*/job.json"))]
        return [revision for revision in found if revision not in self._ended and revision != but]

    def _parts(self, revision: str, release: Release) -> dict[Part, str]:
        """Those that the work on this revision began with, also before a restart."""
        job = self._folder(revision) / "job.json"
        if not job.exists():
            job.parent.mkdir(parents=True, exist_ok=True)
            parts = {part: release.parts[part] for part in PARTS}
            written = job.with_suffix(".partial")
            written.write_text(json.dumps({"preference": revision, "parts": parts}, indent=2) + "\n")
            written.rename(job)
        found: dict[Part, str] = json.loads(job.read_text())["parts"]
        return found

    def _handle(self, revision: str, parts: Mapping[Part, str]) -> Verdict:
        with TRAINING.track_inprogress():
            done = self._train(revision, parts)
        found = done.comparison
        GAIN.labels("mean").set(found.gain)
        GAIN.labels("lower").set(found.worst)
        figures = {
            "judge_gain": found.gain,
            "judge_worst": found.worst,
            "judge_wins": found.wins,
            "gate_passed": found.drawn,
            "gate_passed_before": found.drawn_before,
        }
        if found.worst < -self._plan.margin or found.drawn < LEAST_KEPT * found.drawn_before:
            return Verdict(revision, "refused", f"{found}; margin {self._plan.margin:g}", figures=figures)
        now = self._retrying(self._releases.current, "read the release")
        if now is None or any(now.parts.get(part) != parts[part] for part in ("adapter", "space")):
            number = 0 if now is None else now.number
            return Verdict(revision, "overtaken", f"release {number} has another adapter or space", figures=figures)
        files = {path.name: path for path in sorted(done.adapter.iterdir())}
        tuned = self._plan.folder / revision[:16] / "model" / "adapter" / "sampler.json"
        if tuned.exists():  # by how many steps, and where the branch is: the new adapter is drawn with the same
            files["sampler.json"] = tuned
        adapter: str = self._retrying(
            lambda: self._releases.put_part(
                "adapter",
                files,
                space=parts["space"],
                made_by="icg align",
                parents={"adapter": parts["adapter"], "preference": revision},
                metrics=figures,
                notes=str(found),
            ),
            "store the adapter",
        )
        reason = f"realigned to preference {revision[:12]}: {found}"[:500]
        published = self._retrying(lambda: self._releases.publish({"adapter": adapter}, reason, "adapter"), "release")
        return Verdict(revision, "released", str(found), adapter, published.number, figures)

    def _train(self, revision: str, parts: Mapping[Part, str]) -> Realigned:
        from icg.alignment.stages import Run, Stage, realign
        from icg.exceptions import BadWeights, Unsupported

        plan, folder = self._plan, self._folder(revision)
        model = folder / "model"
        model.mkdir(exist_ok=True)
        for part in PARTS:
            fetched: Path = self._retrying(partial(self._releases.fetch, part, parts[part]), "fetch")
            (model / part).unlink(missing_ok=True)
            (model / part).symlink_to(fetched.resolve(), target_is_directory=True)
        stage = Stage(
            model,
            plan.catalogue,
            folder,
            plan.validation,
            device=plan.device,
            size=plan.size,
            sampler_steps=plan.sampler_steps,
            choices=plan.choices,
            watched=plan.watched,
            judge=plan.judge,
        )
        run = Run(
            folder,
            plan.steps,
            plan.batch,
            plan.rate,
            warmup=min(20, plan.steps),
            cooldown=plan.steps // 4,
            seed=plan.seed,
            device=plan.device,
            log_steps=10,
            save_seconds=60,
        )
        try:
            return realign(stage, run, pull=plan.pull)
        except BlockingIOError:
            raise UserError(f"another process trains in {folder}") from None
        except (BadWeights, Unsupported, ValueError) as error:
            raise UserError(str(error)) from None

    def _folder(self, revision: str) -> Path:
        return self._plan.folder / revision[:16]

    def _note(self, verdict: Verdict) -> Verdict:
        line = {name: value for name, value in vars(verdict).items() if value is not None}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._ended.add(verdict.preference)
        VERDICTS.labels(verdict.outcome).inc()
        return verdict


def run(settings: Settings, plan: Plan, say: Callable[[str], None], *, watch: bool = True) -> None:
    """Handle the release in force; with `watch`, every one that comes, until SIGTERM or Ctrl-C, and tell /readyz and
    /metrics on the way.

    Args:
        say: gets a line a verdict.

    Raises:
        UserError: as `Aligner.step`.
    """

    def told(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, told) for each in (signal.SIGTERM, signal.SIGINT)}
    health = Health(settings.health_port if watch else 0, host=settings.health_host, service="align")
    servers = Reachable(health)
    producer = Producer(settings.kafka, "align")
    releases = Releases(ObjectStore(settings.s3), settings.cache, producer)
    news, never = threading.Event(), threading.Event()
    follower = ReleaseFollower(settings.kafka, releases, lambda release: news.set()) if watch else None
    try:
        aligner = Aligner(
            releases, plan, lambda call, what: retrying(call, what=what, stop=never, on_retry=servers.fault)
        )
        if follower is not None:
            follower.start()
            servers.asks |= {"s3": ObjectStore(settings.s3, timeout=2, attempts=1).ping, "kafka": producer.ping}
            servers.start()
        while True:
            news.clear()
            for verdict in aligner.step():
                say(str(verdict))
            if follower is None:
                return
            news.wait()
    except (KeyboardInterrupt, Stopped):
        say(f"stopped; what was trained is kept in {plan.folder}")
    finally:
        if follower is not None:
            follower.stop()
            servers.stop()
        producer.close()
        health.close()
        for each, handler in before.items():
            signal.signal(each, handler)
