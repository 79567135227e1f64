"""Answers as text: what comes with the data stays as it is."""

import json

import pytest

from workers.audit.show import Format, show, show_one

ROW = {"title": "[red]The :x: Files[/red] 🙂", "users": None, "ctr": 0.123456, "ids": ["a", "b"]}


@pytest.mark.parametrize("form", Format)
def test_markup_and_emoji_codes_in_the_data_are_text(form: Format) -> None:
    assert ROW["title"] in show([ROW], form)
    assert ROW["title"] in show_one({"item": ROW}, form)


def test_a_column_may_be_called_anything() -> None:
    assert "root:x:0" in show([{"root:x:0": 1}], Format.TABLE)


def test_json_is_the_whole_record() -> None:
    assert json.loads(show([ROW], Format.JSON)) == [ROW]
