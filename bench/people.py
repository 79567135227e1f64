"""Real people test the user side of this project, and nothing else of it: no cover is drawn here.

`movielens`: what a person watches next, all films ranked, time split within each person (60 % before an import of
embeddings, 20 % to learn online, 20 % to test), against popularity, a global model, the imported embedding alone and
matrix factorisation anew. `web_preferences` (Calista): which of two web pages a person finds more attractive, the
first 24 votes of an accepted session fit, the rest test, against Bradley-Terry.

A gain is counted only where the 95 % interval over people leaves 0 out; with the people's ids permuted it must be gone.
Settings are chosen within the part that fits.

    python bench/people.py [--data ../shared/data] [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from icg.evaluation import films, votes
from icg.evaluation.attributes import attributes
from icg.evaluation.bootstrap import Interval, over_rows
from icg.evaluation.report import Figure, report, versions

LIKED = 4.0  # stars from which a film counts as liked


def interval(name: str, found: Interval, note: str) -> list[Figure]:
    """A difference with its interval; `_gain` is 0 where the interval includes 0."""
    return [
        Figure(name, found.value, note=note),
        Figure(f"{name}_low", found.low),
        Figure(f"{name}_high", found.high),
        Figure(f"{name}_gain", found.gain, note="none" if found.gain == 0 else "interval leaves 0 out"),
    ]


def web_preferences(folder: Path) -> list[Figure]:
    cast, order, early = votes.read(json.loads((folder / "votesessions.json").read_text()))
    people, pages = int(cast.people.max()) + 1, 100
    pictures = np.stack([attributes(Image.open(folder / "thumbs" / f"{page}.webp")) for page in range(pages)])
    fit, test = cast.where(early), cast.where(~early)
    settings = votes.chosen_settings(fit, order[early], people, pictures)
    space = votes.axes(pictures, settings.dimension)
    fitted = votes.fit(fit, people, space, settings)
    strangers = votes.fit(fit.permuted(0), people, space, settings)
    shared = fitted.margins(test, personal=False)
    figures = [
        Figure("calista_people", people, note="accepted sessions"),
        Figure("calista_votes_tested", len(test), note="decided, on pairs the person was not shown before"),
        Figure("calista_bradley_terry", float((shared > 0).mean()), note="share of votes foretold by shared strengths"),
        Figure("calista_personal", float((fitted.margins(test) > 0).mean()), note=f"with the residual; {settings}"),
    ]
    for name, model in (("calista", fitted), ("calista_permuted", strangers)):
        gain = votes.likelihoods(model.margins(test)) - votes.likelihoods(shared)
        hits = (model.margins(test) > 0).astype(float) - (shared > 0)
        figures += interval(
            f"{name}_over_bradley_terry", over_rows(votes.by_person(gain, test)), "log-likelihood a vote, nats"
        )
        figures += interval(
            f"{name}_hits_over_bradley_terry", over_rows(votes.by_person(hits, test)), "share of votes foretold"
        )
    return figures


def movielens(folder: Path) -> list[Figure]:
    with (folder / "ratings.csv").open() as stream:
        rows = sorted(
            (int(row["userId"]), int(row["timestamp"]), int(row["movieId"]), float(row["rating"]))
            for row in csv.DictReader(stream)
        )
    names = np.array([row[0] for row in rows])
    _, people = np.unique(names, return_inverse=True)
    shown, film = np.unique([row[2] for row in rows], return_inverse=True)
    log = films.Log(people, film, np.array([row[3] >= LIKED for row in rows]))
    count = int(people.max()) + 1, len(shown)
    share = log.share()
    before, after = log.where(share < 0.6), log.where((share >= 0.6) & (share < 0.8))
    fit, test = log.where(share < 0.8), log.where(share >= 0.8)
    factors = films.chosen_factors(before, after, *count)
    given = films.factorise(films.matrix(before, *count), factors.factors, factors.weight, factors.ridge)
    anew = films.factorise(films.matrix(fit, *count), factors.factors, factors.weight, factors.ridge)
    taste = films.chosen_taste(before, after, given)
    learned = films.learn(before, after, given, [taste])[0]
    scores = {who: learned.scores(who) for who in ("global", "imported", "no_residual", "personal")}
    scores |= {"popularity": films.popularity(fit, *count), "factorisation": anew[0] @ anew[1].T}
    # Everybody is given somebody else's vector; films seen are still their own.
    order = np.random.default_rng(0).permutation(count[0])
    swapped = np.empty_like(order)
    swapped[order] = np.roll(order, 1)
    residuals = np.asarray(learned.residuals)[swapped]
    scores["permuted"] = scores["personal"][swapped]
    scores["residual_permuted"] = dataclasses.replace(learned, residuals=residuals).scores("personal")
    tested, _ = films.ndcg(scores["popularity"], fit, test)
    found = {who: films.ndcg(x, fit, test)[1] for who, x in scores.items()}
    figures = [
        Figure("movielens_people", len(tested), note=f"who liked (>= {LIKED:g} stars) something in their last 20 %"),
        *(Figure(f"movielens_{who}", float(x.mean()), note=f"NDCG@10, {count[1]} films") for who, x in found.items()),
        Figure("movielens_bound", taste.bound, note=f"{taste}, {factors}: chosen within the first 80 %"),
    ]
    for other in films.CONTENDERS[:-1]:
        figures += interval(
            f"movielens_over_{other}", over_rows(found["personal"] - found[other]), f"NDCG@10, personal less {other}"
        )
    for strange, plain in (("permuted", "popularity"), ("residual_permuted", "no_residual")):
        figures += interval(
            f"movielens_{strange}_over_{plain}",
            over_rows(found[strange] - found[plain]),
            "ids permuted: no gain is left",
        )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["movielens", "web_preferences"])
    given = parser.parse_args()
    figures: list[Figure] = []
    for study in (web_preferences, movielens):
        if given.only in {None, study.__name__}:
            folder = given.data / study.__name__
            if not folder.is_dir():
                print(f"bench/people.py: no data at {study.__name__} under --data", file=sys.stderr)
                return 2
            figures += study(folder)
    return 0 if report("Real people, user side only", figures, given.json, versions("numpy")) else 1


if __name__ == "__main__":
    sys.exit(main())
