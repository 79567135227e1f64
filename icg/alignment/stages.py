"""The stages as they are run: from files to files.

A stage's folder holds `checkpoint.pt`, `log.jsonl`, `tensorboard/`, sheets, and when it ends (or is told to stop)
`adapter/`, and `mllm/` where that was trained on the way. The next stage starts from this folder.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray

from icg.alignment import dpo, liked, rewards, warmup
from icg.alignment.catalogue import Catalogue, Choices, read_catalogue, read_choices
from icg.alignment.material import Material
from icg.alignment.objective import Objective, Weights
from icg.alignment.people import People, PeopleConfig, Taste, estimate_people, same_segments
from icg.alignment.student import Student
from icg.alignment.watch import Comparison, Watch, WatchConfig
from icg.generator import CoverGenerator
from icg.loading import quietly
from icg.preference import Head
from icg.rewards.aesthetic import Aesthetic
from icg.rewards.preference import CoverEncoder, PreferenceModel
from icg.rewards.relevance import Relevance
from icg.rewards.vision import SLOTS, pixels
from icg.sampling import SamplerConfig
from icg.slots import in_slots
from icg.tiny.catalogue import catalogue as emoji_catalogue
from icg.tiny.data import load
from icg.training import Run
from icg.tuned import tuned

__all__ = ["Realigned", "Run", "Stage", "Weights", "climb_rewards", "learn_liked", "learn_pairs", "realign", "warm_up"]


@dataclass(frozen=True)
class Stage:
    """What a stage reads, and where it writes."""

    model: Path  # base, mllm, adapter, rewards, space, preference
    catalogue: Path
    folder: Path
    validation: Path | None = None  # catalogue of other items; None: the catalogue itself, or the emoji's own split
    start: Path | None = None  # folder of the stage before; None: the model's own adapter and MLLM
    device: str = "cpu"
    size: int = 64  # pixels a side of a cover
    sampler_steps: int | None = None  # None, as for `branch`: as the model's adapter is drawn
    choices: Path | None = None
    watched: int = 12  # items of validation that are drawn and looked at on the way
    judge: Path | None = None  # `space` and `preference` of a model that trains nothing
    branch: float | None = None  # share of the steps that an item's covers have in common

    def stack(self) -> CoverGenerator:
        """Base, MLLM and the adapter to go on with, and covers drawn as the service draws those of the model."""
        parts = [self.part("base"), self.part("mllm"), self.part("adapter")]
        return CoverGenerator.from_parts(*parts, device=self.place(), sampler=self.sampler())

    def sampler(self) -> SamplerConfig:
        """What the model's adapter says, as far as nothing else is said here."""
        return tuned(
            self.model / "adapter",
            steps=self.sampler_steps,
            branch=self.branch,
            width=self.size,
            height=self.size,
            dtype="bfloat16" if torch.device(self.device).type == "cuda" else "float32",
        )

    def place(self) -> str:
        """This process's own device: under `accelerate launch` each has another GPU."""
        kind = torch.device(self.device).type
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError("there is no CUDA device here")
        return str(PartialState(cpu=kind == "cpu").device)

    def part(self, name: str) -> Path:
        """A part's folder: of the stage before if it has it, of the model else."""
        if self.start is not None and (self.start / name).is_dir():
            return self.start / name
        if name == "adapter" and self.start is not None:
            raise ValueError(f"{self.start} has no adapter yet: that stage has not ended")
        return self.model / name

    def catalogues(self) -> tuple[Catalogue, Catalogue]:
        """To train on and to watch."""
        if _is_emoji(self.catalogue):
            return emoji_catalogue(load(self.catalogue, "train")), emoji_catalogue(load(self.catalogue, "val"))
        train = read_catalogue(self.catalogue)
        return train, train if self.validation is None else read_catalogue(self.validation)

    def signature(self) -> str:
        """Of everything that is read: no checkpoint goes on with another model or other data."""
        digest = hashlib.sha256(f"{self.sampler()}".encode())
        folders = [self.part(name) for name in ("base", "mllm", "adapter")]
        if self.choices is not None:
            folders += [self.model / name for name in ("rewards", "space", "preference")]
        files = [file for folder in folders for file in sorted(folder.rglob("*.safetensors"))]
        for file in [*files, self.catalogue, *([self.choices] if self.choices else [])]:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]


def warm_up(stage: Stage, run: Run, *, guidance: float, matching: int, also: tuple[str, ...]) -> Path:
    """Warm-up; the folder of the adapter."""
    train, held = stage.catalogues()
    stack = stage.stack()
    config = warmup.WarmupConfig(
        guidance=guidance,
        matching=matching,
        also=also,
        watched=6 * stage.watched,  # an error is cheaper to know than a cover is to draw
        shown=stage.watched,
    )
    student = warmup.train(Material(stack, train), Material(stack, held), config, run, stage.signature())
    return _write(stage, student, bool(also))


def learn_liked(stage: Stage, run: Run, *, strength: float) -> Path:
    """Liked-SFT; the folder of the adapter."""
    world = _World.of(stage)
    config = liked.LikedConfig(strength=strength)
    student = liked.train(world.material, world.choices, world.people, world.watch, config, run, stage.signature())
    return _write(stage, student)


def climb_rewards(stage: Stage, run: Run, *, pull: float, weights: Weights) -> Path:
    """Reward back-propagation; the folder of the adapter."""
    world = _World.of(stage, weights)
    config = rewards.RewardsConfig(pull=pull)
    student = rewards.train(world.material, world.people, world.objective, world.watch, config, run, stage.signature())
    return _write(stage, student)


@dataclass(frozen=True)
class Realigned:
    """What came of going on with a released adapter."""

    adapter: Path
    comparison: Comparison  # with the adapter that it started from


def realign(stage: Stage, run: Run, *, pull: float) -> Realigned:
    """Reward training goes on from the model's own adapter, and a judge that neither trained nor chose compares.

    So no look on the way ends the training: a judge that had picked the best moment would flatter it.

    Raises:
        ValueError: no judge.
    """
    if stage.judge is None:
        raise ValueError("an adapter is released on the word of a judge: name its folder")
    world = _World.of(stage)
    before = Student(world.material.stack.mllm, copy.deepcopy(world.material.stack.adapter)).eval()
    config = rewards.RewardsConfig(pull=pull)
    student = rewards.train(world.material, world.people, world.objective, world.watch, config, run, stage.signature())
    return Realigned(_write(stage, student), world.watch.compare(before, student))


def learn_pairs(stage: Stage, run: Run, *, pairs: int, beta: float) -> Path:
    """Diffusion-DPO on the rewards' own sum; the folder of the adapter."""
    world = _World.of(stage)
    objective = world.objective

    def score(images: torch.Tensor, person: int, title: str) -> NDArray[np.float32]:
        values = objective.rewards(
            images, torch.full((len(images),), person, device=images.device), [title] * len(images)
        )
        # Within the eight: nothing else has to be known of a reward's unit.
        standard = (values - values.mean(dim=0)) / values.std(dim=0).clamp_min(1e-6)
        weights = standard.new_tensor(list(objective.weights.values()))
        return np.asarray((standard @ weights).cpu().numpy(), np.float32)

    config = dpo.DPOConfig(pairs=pairs, beta=beta)
    student = dpo.train(world.material, world.people, score, world.watch, config, run, stage.signature())
    return _write(stage, student)


@dataclass(frozen=True)
class _World:
    """What the stages after the warm-up have in common."""

    material: Material
    choices: Choices
    people: People
    objective: Objective
    watch: Watch

    @classmethod
    def of(cls, stage: Stage, weights: Weights | None = None) -> _World:
        train, held = stage.catalogues()
        stack = stage.stack()
        if stage.choices is None:
            raise ValueError("this stage learns from choices: name their file")
        choices = read_choices(stage.choices, len(train))
        material = Material(stack, train)
        model = stage.model
        people, taste = _taste(material, choices, model / "space", model / "preference", stage.place())
        if (space := taste_space(model)) != stack.space:
            raise ValueError(f"the adapter is of space {stack.space[:12]}, the preference model of {space[:12]}")
        with quietly():
            relevance = Relevance.from_pretrained(model / "rewards" / "relevance").to(stage.place())
            folder = model / "rewards" / "aesthetic"
            aesthetic = Aesthetic.from_pretrained(folder).to(stage.place()) if folder.is_dir() else None
        objective = Objective(taste, relevance, aesthetic, weights or Weights()).to(stage.place())
        judge = None
        if stage.judge is not None:
            theirs = _taste(material, choices, stage.judge / "space", stage.judge / "preference", stage.place())
            judge = Taste(theirs[1].model, same_segments(theirs[0], people)).to(stage.place())
        watch = Watch(Material(stack, held), objective, judge, people, WatchConfig(items=stage.watched))
        return cls(material, choices, people, objective, watch)


def taste_space(model: Path) -> str:
    """Revision of the space in which the model's preference head is."""
    return Head.load(model / "preference").space


@torch.no_grad()
def _taste(material: Material, choices: Choices, space: Path, preference: Path, device: str) -> tuple[People, Taste]:
    """The training people in a preference model's own space, and their taste."""
    with quietly():
        encoder = CoverEncoder.from_pretrained(space).to(device)
    head = Head.load(preference)
    rows = np.unique(np.concatenate([choices.chosen, choices.rejected]))
    embeddings = np.zeros((len(material.catalogue), head.dimension), np.float32)
    for part in np.array_split(rows, -(-len(rows) // 256)):
        images = pixels([material.pixels(int(row)) for row in part]).to(device)
        embeddings[part] = in_slots(encoder, SLOTS, images).cpu().numpy()
    people = estimate_people(choices, head, embeddings, PeopleConfig())
    return people, Taste(PreferenceModel(encoder, head), people).to(device)


def _write(stage: Stage, student: Student, read_anew: bool = False) -> Path:
    """The stage's result beside its checkpoint; an MLLM that some stage has trained goes along from stage to stage."""
    if not PartialState().is_main_process:
        return stage.folder / "adapter"
    student.adapter.save_pretrained(stage.folder / "adapter")
    if read_anew or stage.part("mllm") != stage.model / "mllm":
        student.mllm.save_pretrained(stage.folder / "mllm")
    return stage.folder / "adapter"


def _is_emoji(path: Path) -> bool:
    """Whether it is the picture file of icg-tiny, known by its columns."""
    if path.suffix != ".parquet":
        return False
    import pyarrow.parquet as pq

    return {"codepoint", "style", "image_webp"} <= set(pq.read_schema(path).names)
