"""Stage 3: the space of covers and the preference head of icg-tiny, from who chose which picture.

The encoder of covers (the part `space`), a vector for every training person and a mean taste are trained together, by
the loss of the model of choices itself, −log σ(score(u, chosen) − score(u, rejected)), with the standard normal prior
on each u that `icg.preference.estimate` has. W is a fixed multiple of the identity meanwhile: were it free, it would
grow and the prior would bound nothing. Pictures are seen as they are and `worn` by the autoencoder, because drawn
covers are what they will be compared with.

Afterwards the people's vectors are thrown away. What stays of them is the normal distribution they come from, put into
the head by `fit_prior`, so that a new person's vector can be estimated from few choices under a standard normal prior.
Its mean is b: what these people like on average. With the same encoder it is the reward in `aesthetic/`, which is no
more than that.

People of even numbers are half a, of odd numbers half b. Each half trains a model of its own: one is aligned to, the
other judges that. The half that does not train is what a run is watched by.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from icg.alignment.catalogue import Choices, Integers, read_choices
from icg.preference import Array, Head, estimate
from icg.revision import revision
from icg.rewards.aesthetic import Aesthetic
from icg.rewards.vision import Preprocessing
from icg.tiny.autoencoder import augment
from icg.tiny.data import Pictures, load
from icg.tiny.dual_encoder import DualEncoderConfig, worn, worn_file
from icg.tiny.files import CACHE, fingerprint
from icg.tiny.pixels import to_tensor
from icg.tiny.stage import stage_parser
from icg.tiny.vision import PATCH, SIZE, image_processor
from icg.training import Batch, Run, Task, fit

DIMENSION = 64
HELD_CONCEPTS = 10  # every tenth concept's choices train nothing


@dataclass(frozen=True)
class PreferenceConfig:
    """0.4 M parameters of the encoder, and a vector a person while it is trained."""

    scale: float = 4.0  # of W while training: the margin of a person of deviation 1 between opposite covers is 8
    choices: int = 64  # of a concept in a step, drawn with replacement
    speed: float = 10.0  # of the people's vectors and the mean taste, in the encoder's learning rates
    rounds: int = 3  # of expectation-maximisation for the people's distribution


def encoder() -> CLIPVisionModelWithProjection:
    """With fresh weights from torch's global seed."""
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=DIMENSION,
    )
    model = CLIPVisionModelWithProjection(config)
    model.train(False)
    return model


class Tastes(nn.Module):
    """What is trained: encoder, people, mean taste."""

    def __init__(self, people: int, config: PreferenceConfig) -> None:
        super().__init__()
        self.encoder = encoder()
        self.config = config
        self.people = nn.Parameter(torch.randn(people, DIMENSION) * 0.1 / config.speed)
        self.mean = nn.Parameter(torch.zeros(DIMENSION))

    def embed(self, images: Tensor) -> Tensor:
        """[n, 3, 64, 64] in [-1, 1] to unit vectors [n, 64]."""
        return functional.normalize(self.encoder(pixel_values=images).image_embeds, dim=-1)

    def head(self) -> Head:
        """The head as it is while training; it names no space yet."""
        bias = self.config.scale * self.config.speed * self.mean.detach().cpu().numpy()
        return Head("", self.config.scale * np.eye(DIMENSION), bias)


def loss(model: Tastes, batch: Batch, choices_each: float) -> dict[str, Tensor]:
    """Mean of −log σ(margin) and the prior's share in it.

    Args:
        batch: `images` [n, pictures, 3, 64, 64]; `users`, `chosen` and `rejected` [n, choices], the latter two numbers
            of the row's own pictures.
        choices_each: of a person in the training data, over which the prior is shared out.
    """
    covers = model.embed(batch["images"].flatten(0, 1)).unflatten(0, batch["images"].shape[:2])
    rows = torch.arange(len(covers), device=covers.device)[:, None]
    steps = covers[rows, batch["chosen"]] - covers[rows, batch["rejected"]]
    users = model.config.speed * model.people[batch["users"]]
    margins = model.config.scale * ((users + model.config.speed * model.mean) * steps).sum(-1)
    misfit = -functional.logsigmoid(margins).mean()
    prior = users.square().sum(-1).mean() / (2 * choices_each)
    return {"loss": misfit + prior, "misfit": misfit, "right": (margins > 0).float().mean()}


def fit_prior(head: Head, choices: Choices, embeddings: Array, rounds: int) -> Head:
    """The head in which these people's vectors are standard normal: empirical Bayes by expectation-maximisation.

    With u ~ N(m, L Lᵀ), score(u, c) = u'ᵀ (Lᵀ W) c + (b + Wᵀ m)ᵀ c of a standard normal u'. Each posterior is taken for
    normal, with the curvature at its top (Laplace).

    Args:
        embeddings: [rows, d] of the pictures.
    """
    own = [np.flatnonzero(choices.users == person) for person in np.unique(choices.users)]
    for _ in range(rounds):
        weight, bias = head.weight.astype(np.float64), head.bias.astype(np.float64)
        total = np.zeros(len(bias))
        square = np.zeros_like(weight)
        for mine in own:
            chosen, rejected = embeddings[choices.chosen[mine]], embeddings[choices.rejected[mine]]
            u = estimate(head, chosen, rejected).astype(np.float64)
            steps = (chosen - rejected).astype(np.float64)
            features = steps @ weight.T
            p = 0.5 * (1 + np.tanh((features @ u + steps @ bias) / 2))
            curvature = np.eye(len(u)) + (features.T * (p * (1 - p))) @ features
            total += u
            square += np.outer(u, u) + np.linalg.inv(curvature)
        mean = total / len(own)
        covariance = square / len(own) - np.outer(mean, mean)
        root = np.linalg.cholesky(covariance + 1e-8 * np.eye(len(mean)))
        head = Head(head.space, root.T @ weight, bias + weight.T @ mean)
    return head


def agreement(head: Head, choices: Choices, embeddings: Array, tested: NDArray[np.bool_], history: int) -> float:
    """How often a person's choice is foreseen from the first `history` of their others; 0: from the mean taste alone.

    Args:
        tested: [choices], those to foresee; a history is taken from the rest.
    """
    right: list[NDArray[np.bool_]] = []
    for person in np.unique(choices.users):
        mine = np.flatnonzero(choices.users == person)
        past = mine[~tested[mine]][:history]
        asked = mine[tested[mine]]
        if not len(asked):
            continue
        u = estimate(head, embeddings[choices.chosen[past]], embeddings[choices.rejected[past]])
        chosen, rejected = embeddings[choices.chosen[asked]], embeddings[choices.rejected[asked]]
        right.append(head.margins(np.broadcast_to(u, chosen.shape), chosen, rejected) > 0)
    return float(np.concatenate(right).mean())


def later(choices: Choices) -> NDArray[np.bool_]:
    """The second half of each person's choices, [choices]."""
    mask = np.zeros(len(choices.users), bool)
    for person in np.unique(choices.users):
        mine = np.flatnonzero(choices.users == person)
        mask[mine[len(mine) // 2 :]] = True
    return mask


def held_concepts(concepts: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Whether a picture's concept trains nothing, [n]; by hash, so that it never depends on the other rows."""
    return np.array([zlib.crc32(str(concept).encode()) % HELD_CONCEPTS == 0 for concept in concepts])


def some(choices: Choices, mask: NDArray[np.bool_]) -> Choices:
    return Choices(choices.users[mask], choices.chosen[mask], choices.rejected[mask])


def figures(head: Head, theirs: Choices, embeddings: Array, held: NDArray[np.bool_]) -> dict[str, float]:
    """Agreement with people who trained nothing: on their later choices, and on choices among concepts that did not.

    Args:
        held: of the pictures, `held_concepts`.
    """
    ask = later(theirs)
    fresh = held[theirs.chosen]
    told = {f"agrees_{n}": agreement(head, theirs, embeddings, ask, n) for n in (0, 5, 15, 50)}
    if not fresh.any():
        return told
    return {**told, **{f"agrees_new_{n}": agreement(head, theirs, embeddings, fresh, n) for n in (0, 5, 15, 50)}}


@torch.no_grad()
def embed_all(model: Tastes, pixels: Tensor, device: str) -> Array:
    """[n, 64] of uint8 pictures [n, height, width, 3]."""
    parts = [model.embed(to_tensor(part).to(device)).float().cpu() for part in torch.split(pixels, 128)]
    return np.asarray(torch.cat(parts).numpy(), np.float32)


def train(
    config: PreferenceConfig,
    run: Run,
    autoencoder: AutoencoderKL,
    pictures: Pictures,
    choices: Choices,
    half: str,
    signature: str = "",
    kept: Path | None = None,
) -> tuple[Tastes, Head]:
    """Train to `run.steps`; the EMA model and its head, still without a space.

    Args:
        run: `batch` counts concepts, all pictures of each.
        autoencoder: frozen, with folded latents.
        choices: of both halves; rows of `pictures`.
        half: "a" or "b".
        kept: file of the worn pictures.

    Raises:
        ValueError: the half has no choices, or the other has none.
    """
    mine = (choices.users % 2 == 1) == (half == "b")
    held = held_concepts(pictures.concepts)
    taught = mine & ~held[choices.chosen] & ~held[choices.rejected]
    if not taught.any() or mine.all():
        raise ValueError("choices of even and of odd people are wanted: one half trains, the other watches")
    learned, theirs = some(choices, taught), some(choices, ~mine)
    people, users = np.unique(learned.users, return_inverse=True)
    learned = Choices(users.astype(np.int64), learned.chosen, learned.rejected)

    torch.manual_seed(run.seed)
    model = Tastes(len(people), config)
    autoencoder = autoencoder.to(run.device).eval().requires_grad_(False)
    real = torch.from_numpy(pictures.pixels)
    seen_as = torch.stack([real, worn(autoencoder, real, DualEncoderConfig(), run.device, kept)])
    draw = _drawer(pictures, learned, seen_as, config, run.batch)

    def step_loss(model: Tastes, batch: Batch) -> dict[str, Tensor]:
        return loss(model, batch, len(users) / len(people))

    def observe(model: Tastes, step: int) -> dict[str, float]:
        embeddings = embed_all(model, real, run.device)
        head = fit_prior(model.head(), learned, embeddings, 1)
        drawn = embed_all(model, seen_as[1], run.device)
        worn_50 = agreement(head, theirs, drawn, later(theirs), 50)
        return {**figures(head, theirs, embeddings, held), "agrees_worn_50": worn_50}

    model = fit(model, Task(draw, step_loss, observe), run, f"{config} {half} {len(people)} {signature}")
    return model, fit_prior(model.head(), learned, embed_all(model, real, run.device), config.rounds)


def _drawer(
    pictures: Pictures, choices: Choices, seen_as: Tensor, config: PreferenceConfig, batch: int
) -> Callable[[torch.Generator], Batch]:
    """Concepts, with all of their pictures and some of the choices among these.

    Every picture is embedded once for many choices: it is what costs.
    """
    concepts, concept = np.unique(pictures.concepts, return_inverse=True)
    rows_of: list[Integers] = [np.flatnonzero(concept == number) for number in range(len(concepts))]
    place = np.zeros(len(pictures), np.int64)
    for rows in rows_of:
        place[rows] = np.arange(len(rows))
    of = concept[choices.chosen]
    within = of == concept[choices.rejected]
    chosen_in = [np.flatnonzero(within & (of == number)) for number in range(len(concepts))]
    asked = [number for number, some in enumerate(chosen_in) if len(some)]
    most = max(len(rows_of[number]) for number in asked)

    def draw(generator: torch.Generator) -> Batch:
        numbers = [asked[k] for k in torch.randint(len(asked), (batch,), generator=generator).tolist()]
        # A concept of fewer pictures repeats some of them; nobody asks for the repeated ones.
        rows = torch.from_numpy(np.stack([np.resize(rows_of[number], most) for number in numbers]))
        worn_or_not = (torch.rand(batch, most, generator=generator) < 0.5).long()
        images = augment(to_tensor(seen_as[worn_or_not, rows].flatten(0, 1)), generator)
        chance = torch.rand(batch, config.choices, generator=generator).numpy()
        given = [chosen_in[number] for number in numbers]
        picked = np.stack([own[(u * len(own)).astype(int)] for own, u in zip(given, chance, strict=True)])
        return {
            "images": images.unflatten(0, (batch, most)),
            "users": torch.from_numpy(choices.users[picked]),
            "chosen": torch.from_numpy(place[choices.chosen[picked]]),
            "rejected": torch.from_numpy(place[choices.rejected[picked]]),
        }

    return draw


def own_weights(model: CLIPVisionModelWithProjection, head: Head) -> dict[str, Tensor]:
    """The part as it is shipped: the encoder's tensors, and W and b."""
    tensors = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    return {**tensors, "head.weight": torch.from_numpy(head.weight), "head.bias": torch.from_numpy(head.bias)}


def save(model: CLIPVisionModelWithProjection, head: Head, folder: Path) -> None:
    """Write `space/`, `preference/` and `aesthetic/`."""
    model.save_pretrained(folder / "space")
    image_processor().save_pretrained(folder / "space")
    Head(revision("space", folder / "space"), head.weight, head.bias).save(folder / "preference")
    on_average(model, head, folder / "space").save_pretrained(folder / "aesthetic", folder / "space")


def on_average(model: CLIPVisionModelWithProjection, head: Head, processor: Path) -> Aesthetic:
    """How much the training people like a picture on average, bᵀ c: what icg-tiny has for an aesthetic reward."""
    linear = nn.Linear(head.dimension, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(head.bias)[None])
        linear.bias.zero_()
    return Aesthetic(model, Preprocessing.from_pretrained(processor), nn.Sequential(linear))


def main(argv: Sequence[str] | None = None) -> None:
    """`icg train preference CHOICES`, or `python -m icg.tiny.preference`."""
    parser = stage_parser(str(__doc__), "preference", steps=3000, batch=12)
    parser.add_argument("choices", type=Path, help=".npz, JSONL or Parquet of user, chosen, rejected")
    parser.add_argument("--autoencoder", type=Path, default=CACHE / "autoencoder" / "model", help="stage 1's model")
    parser.add_argument("--half", choices=("a", "b"), default="a", help="whose choices train: even or odd numbers")
    parser.add_argument("--save-seconds", type=float, default=180.0, help="between checkpoints")
    arguments = parser.parse_args(argv)
    pictures = load(arguments.data, "train")
    run = Run(
        folder=arguments.folder,
        steps=arguments.steps,
        batch=arguments.batch,
        rate=1e-3,
        warmup=50,
        cooldown=arguments.steps // 4,
        weight_decay=0.05,
        ema=0.99,
        seed=arguments.seed,
        device=arguments.device,
        save_seconds=arguments.save_seconds,
        observe_seconds=300,
    )
    read = (arguments.autoencoder / "diffusion_pytorch_model.safetensors", arguments.choices)
    model, head = train(
        PreferenceConfig(),
        run,
        AutoencoderKL.from_pretrained(arguments.autoencoder, local_files_only=True),
        pictures,
        read_choices(arguments.choices, len(pictures)),
        arguments.half,
        signature=" ".join(fingerprint(path) for path in read),
        kept=worn_file(arguments.folder, arguments.autoencoder, arguments.data),
    )
    save(model.encoder, head, arguments.folder)


if __name__ == "__main__":
    main()
