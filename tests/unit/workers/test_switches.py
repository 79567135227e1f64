"""Off switches: what a change does to the record. The watcher and the store are in the integration tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from workers.exceptions import UserError
from workers.records import Switches
from workers.switches import MOST_LINES, app, block, blocked, personalize, unblock

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
COVER, OTHER = "a" * 64, "b" * 64


def test_a_block_is_lifted_and_never_forgotten():
    on = block(COVER, "a logo in it", "ada", NOW)(Switches())
    off = unblock(COVER, "redrawn", "ben", NOW + timedelta(hours=1))(block(OTHER, "", "ada", NOW)(on))
    again = block(COVER, "worse", "ada", NOW + timedelta(hours=2))(off)
    assert [blocked(each) for each in (on, off, again)] == [{COVER}, {OTHER}, {COVER, OTHER}]
    assert [(entry.reason, entry.lifted) for entry in again.blocks if entry.cover_id == COVER] == [
        ("a logo in it", NOW + timedelta(hours=1)),
        ("worse", None),
    ]
    assert again.log[0] == f"2026-11-21T12:00:00+00:00 ada: block {COVER} (a logo in it)"
    assert [line.split()[1] for line in again.log] == ["ada:", "ada:", "ben:", "ada:"]


def test_what_is_so_already_is_said():
    with pytest.raises(UserError, match="blocked already"):
        block(COVER, "", "ada", NOW)(block(COVER, "", "ada", NOW)(Switches()))
    with pytest.raises(UserError, match="not blocked"):
        unblock(COVER, "", "ada", NOW)(Switches())
    with pytest.raises(UserError, match="so it is already"):
        personalize(True, "", "ada", NOW)(Switches())


def test_personalization_goes_off_and_on():
    off = personalize(False, "complaints", "ada", NOW)(Switches())
    assert not off.personalization
    assert personalize(True, "", "ada", NOW)(off).personalization
    assert off.log == ["2026-11-21T12:00:00+00:00 ada: personalization off (complaints)"]


def test_a_reason_cannot_forge_a_line_and_the_log_ends():
    switches = Switches()
    for k in range(MOST_LINES + 5):
        switches = personalize(k % 2 == 1, f"one\n2026 eve: {k}", "ada", NOW)(switches)
    assert len(switches.log) == MOST_LINES
    assert not any("\n" in line for line in switches.log)


def test_the_record_survives_a_round_trip():
    switches = block(COVER, "x", "ada", NOW)(Switches())
    assert Switches.decode(switches.encode()) == switches


@pytest.mark.parametrize("bad", ["", "short", "A" * 64, "g" * 64, "a" * 65])
def test_what_is_no_cover_id_is_named_before_anything_is_asked(bad):
    result = CliRunner().invoke(app, ["block", bad, "--reason", "x"])
    assert isinstance(result.exception, UserError)
    assert "64 hexadecimal digits" in str(result.exception)


def test_a_block_needs_a_reason():
    result = CliRunner().invoke(app, ["block", COVER])
    assert result.exit_code == 2
    assert "--reason" in result.output
