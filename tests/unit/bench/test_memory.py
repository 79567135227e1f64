"""docs/checkpoints.md says what bench/memory.py counts."""

from pathlib import Path

import pytest

from bench import memory
from icg.conditioning import FAMILIES

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "checkpoints.md").read_text().splitlines()


@pytest.mark.parametrize("family", ["StableDiffusion", "Sana"])
def test_a_base_on_the_page_is_what_is_counted(family: str) -> None:
    [one] = [one for one in memory.BASES if one.family == family]
    assert memory.base_row(one) in PAGE


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "OpenGVLab/InternVL3-1B-hf"])
def test_an_mllm_on_the_page_is_what_is_counted(name: str) -> None:
    [one] = [one for one in memory.MLLMS if one.name == name]
    assert memory.mllm_row(one) in PAGE
    assert memory.counts(one)["all"] / 1e9 == pytest.approx(one.published, rel=0.01)


def test_every_family_is_on_the_page() -> None:
    told = {line.split("|")[1].strip() for line in PAGE if line.startswith("| ")}
    assert {family.__name__ for family in FAMILIES} <= told
    assert {one.family for one in memory.BASES} == {family.__name__ for family in FAMILIES}
    assert {one.family for one in memory.MLLMS} <= told
