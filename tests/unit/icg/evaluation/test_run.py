"""The whole evaluation on a small real generator, drawn pictures and judges that know nothing: it runs, it adds up."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from icg.evaluation import compare, run
from icg.evaluation.bench import Bench
from icg.evaluation.cli import add_to
from icg.evaluation.contenders import neutral, user
from icg.evaluation.contenders.prompted import Vocabulary, said
from icg.evaluation.emoji import Gallery
from icg.evaluation.report import Figure
from icg.evaluation.world import EvalConfig
from icg.tiny.captions import WORDS


def climb(bench: Bench, folder: Path) -> list[run.Rung]:
    first = run.first_rungs(bench.world, bench.config, bench.generator.base, sampler=bench.generator.sampler)
    return first + run.upper_rungs(bench, folder)


def test_the_ladder_is_climbed_and_what_was_drawn_is_kept(bench: Bench, tmp_path: Path) -> None:
    rungs = climb(bench, tmp_path)
    assert [number for number, _, _ in rungs] == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 6]
    values = {row.name: row.value for _, _, made in rungs for row in made}
    contenders = (
        "neutral mismatched filtered_neutral filtered_by_reward inferred_prompt prompt_oracle best_of_8 "
        "best_of_8_at_icg_cost icg_segment random_embedding liked_sft reference planted planted_by_reward "
        "planted_by_attributes oracle"
    )
    for name in contenders.split():
        assert values[f"wins_over_{name}_low"] <= values[f"wins_over_{name}"] <= values[f"wins_over_{name}_high"]
        assert f"second_wins_over_{name}" in values
        assert name == "neutral" or f"{name}_wins_over_neutral" in values
    # The same generator under another name: every pair is a tie.
    assert values["wins_over_liked_sft"] == 0.5
    assert values["wins_over_planted"] < 0.5
    assert 0 < values["evaluations_neutral"] < values["evaluations_icg"] < values["evaluations_oracle"]
    for given in ("title", "reference", "wrong_reference"):
        assert f"wins_over_mismatched_{given}" in values
        assert f"relevance_kept_{given}" in values
    assert "copies_icg" in values
    assert "copies_icg_title" not in values
    for name in ("judges_hit_first", "judges_hit_pixels", "hit_first_icg", "hit_pixels_icg", "fid_icg", "kid_neutral"):
        assert name in values
    notes = {row.name: row.note for _, _, made in rungs for row in made}
    assert notes["relevance_kept"].startswith("2 seeds: ")
    assert notes["relevance_kept_title"] == "one seed"
    assert values["hit_first_icg"] <= values["hit_icg"]
    # 1 of 2 steps shared, 3 people: (1 + 3) of 6 calls where all see the same reference.
    assert values["fast_evaluations"] < 1
    assert values["icg_segment_wins_over_neutral"] >= 0
    assert "diversity_within_user" in values
    # A second run draws nothing: it is read back, to the digit.
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = {row.name: row.value for _, _, made in climb(bench, tmp_path) for row in made}
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert np.array_equal(list(values.values()), list(again.values()), equal_nan=True)


def test_rungs_and_contenders_by_name(bench: Bench, tmp_path: Path) -> None:
    only = run.upper_rungs(bench, tmp_path, {5}, ("both",), {"mismatched"})
    assert sorted(path.stem for path in tmp_path.iterdir()) == [
        "both-icg", "both-icg_again", "both-mismatched", "both-neutral", "both-neutral_again"
    ]  # fmt: skip
    assert [number for number, _, _ in only] == [5]
    assert [number for number, _, _ in run.first_rungs(bench.world, bench.config, None, {0})] == [0]


def test_the_base_is_told_prompts_guided_in_every_step_however_its_adapter_is_drawn(bench: Bench) -> None:
    bench.generator.sampler = replace(usual := bench.generator.sampler, guidance=3.0, guided=0.5)
    try:
        assert (bench.guided.guidance, bench.guided.guided, bench.guided.branch) == (bench.config.guidance, 1.0, 0.0)
    finally:
        bench.generator.sampler = usual


def test_covers_are_as_personal_as_asked(bench: Bench, tiny_model: Path) -> None:
    def pixels(personalization: float) -> list[np.ndarray]:
        config = replace(bench.config, personalization=personalization)
        loaded = Bench.load(config, bench.world, tiny_model, {})
        items, _ = loaded.items("title")
        drawn = [one(loaded.generator).draw(items[:1], loaded.people[:1], [1]) for one in (neutral, user)]
        return [np.asarray(one.images[0][0], np.int16) for one in drawn]

    plain, same = pixels(0.0)
    assert (plain == same).all()
    own, bold = pixels(1.0)[1], pixels(3.0)[1]
    assert np.abs(bold - plain).mean() > np.abs(own - plain).mean() > 0


def test_the_report_is_what_the_other_benches_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rungs = [
        (0, "judges", [Figure("hit", 0.9, least=0.5), Figure("nothing", float("nan"))]),
        (1, "x", [Figure("y", 1.0, most=0.5)]),
    ]
    assert not run.report(rungs, tmp_path / "out.json", {"split": "val"})
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["figures"] == {"hit": 0.9, "nothing": None, "y": 1.0}
    assert told["machine"]["split"] == "val"
    printed = capsys.readouterr().out
    assert "rung 0 judges       reached" in printed
    assert "missed: y" in printed
    assert run.report(rungs[:1], None, {})


def test_a_contact_sheet_has_a_row_a_title(bench: Bench, tmp_path: Path) -> None:
    run.sheet(bench, tmp_path / "sheet.png", titles=2, people=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 130, 2 * 130)


def test_words_are_those_that_appeal_and_do_not_contradict(train: Gallery) -> None:
    vocabulary = Vocabulary.of(train)
    holds = vocabulary.holds([train.image(row) for row in range(60)])
    assert holds.shape == (60, len(WORDS))
    assert (holds.sum(axis=0) > 0).sum() > 6
    place = {word.word: k for k, word in enumerate(WORDS)}
    assert not (holds[:, place["dark"]] & holds[:, place["pale"]]).any()
    appeal = np.full(len(WORDS), -1.0)
    assert said(appeal) == []
    appeal[[place["dark"], place["pale"], place["flat"], place["solid"], place["simple"]]] = [5.0, 4.0, 3.0, 2.0, 1.0]
    assert said(appeal) == ["dark", "flat", "solid"]


def test_what_was_judged_is_kept_until_anything_that_decided_it_changes(tmp_path: Path) -> None:
    model, judges, code = (tmp_path / name for name in ("model", "judges", "code"))
    deciding = (model / "adapter" / "sampler.json", judges / "second" / "a.safetensors", code / "adapter.py")
    for path in deciding:
        path.parent.mkdir(parents=True)
        path.write_text("1")

    def seen(split: str = "val") -> str:
        return run.fingerprint(model, {}, EvalConfig(), split, judges, code)

    before = [seen()]
    assert seen() == before[0]
    assert seen("test") != before[0]
    for path in deciding:
        path.write_text("2")
        before.append(seen())
    assert len({*before}) == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nowhere", "--stage", "5"), "nowhere has no base, mllm, adapter, rewards, space, preference: `icg init tiny"),
        (("nowhere", "--stage", "0", "--data", "nothing.parquet"), "no pictures are at nothing.parquet"),
        (("nowhere", "--stage", "0", "--given", "words"), "words is none of title, reference"),
    ],
)
def test_what_is_missing_is_one_line(
    arguments: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    add_to(app)
    app.command(name="other")(lambda: None)
    done = CliRunner().invoke(app, ["eval", *arguments], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_own_covers_from_more_seeds_than_neutral_ones_are_refused() -> None:
    assert EvalConfig(pairs=2, turns=4).turns == 4
    with pytest.raises(ValueError, match=r"5 seeds .* 4 to be compared"):
        EvalConfig(pairs=2, turns=5)


def test_where_nothing_is_shared_nothing_is_drawn_twice(bench: Bench, tmp_path: Path) -> None:
    bench.generator.sampler = replace(bench.generator.sampler, branch=0.0)
    [(_, _, made)] = run.upper_rungs(bench, tmp_path, stages=[6])
    assert not (tmp_path / f"both-{compare.FULL}.npz").exists()
    [kept] = [figure for figure in made if figure.name == "quality_kept"]
    assert kept.note == "nothing is shared: 1 by construction"
