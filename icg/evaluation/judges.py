"""Rung 0 alone, what the judges see of real pictures: `python -m icg.evaluation.judges [--split test --why REASON]`.

A look at the test split is written to the reader's log.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from icg.evaluation.emoji import CACHE, gallery, keywords_of
from icg.evaluation.ladder import judges, sight
from icg.evaluation.panel import Panel
from icg.evaluation.run import report
from icg.evaluation.study import study
from icg.evaluation.utility import Utility
from icg.tiny.files import DATA


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--why", default="", help="reason of a look at the test split, for its log")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--judges", type=Path, default=CACHE, help="folder of the trained judges")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    made = study(gallery("train", data=given.data))
    try:
        held = gallery(given.split, data=given.data, why=given.why)
        within = made.standardise.joined(held.raw, held.pictures.concepts)
        panel = Panel.load(held, Utility(made.people, within), keywords_of(given.data), given.judges)
    except (FileNotFoundError, ValueError) as error:
        print(f"icg.evaluation.judges: {error}", file=sys.stderr)
        return 2
    seen = sight(panel, held.pictures.pixels, made.held_out)
    facts = {"split": given.split, "concepts": str(len(held.concepts())), "pictures": str(len(held))}
    return 0 if report([(0, "judges", judges(seen, panel.titles.chance))], given.json, facts) else 1


if __name__ == "__main__":
    sys.exit(main())
