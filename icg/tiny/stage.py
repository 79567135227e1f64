"""The arguments that every stage of icg-tiny takes on its command line."""

import argparse
from pathlib import Path

from icg.tiny.files import CACHE, DATA


def stage_parser(description: str, stage: str, steps: int, batch: int) -> argparse.ArgumentParser:
    """The parser; a stage may add to it."""
    parser = argparse.ArgumentParser(f"icg train {stage.replace('_', '-')}", description=description)
    parser.add_argument("--data", type=Path, default=DATA, help="the emoji parquet file")
    parser.add_argument("--folder", type=Path, default=CACHE / stage, help="checkpoint, log and pictures")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps in all")
    parser.add_argument("--batch", type=int, default=batch, help="pictures a step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser
