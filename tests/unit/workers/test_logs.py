"""Logs are JSON lines without secrets."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from workers.logs import Repeats, configure
from workers.settings import S3, Api, Kafka, Settings

SECRETS = Settings(
    s3=S3(access_key=SecretStr("AKIAEXAMPLE"), secret_key=SecretStr('quo"ted/secret')),
    kafka=Kafka(sasl_password=SecretStr("hunter2hunter2")),
    api=Api(token=SecretStr("t0ken-value")),
)


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_one_object_a_line_with_what_was_passed(capsys: pytest.CaptureFixture[str]) -> None:
    configure(SECRETS)
    logging.getLogger("workers.covers").info("drawn %d", 8, extra={"item_id": "i\n1", "seconds": 0.5})
    (line,) = lines(capsys)
    assert line["message"] == "drawn 8"
    assert line["level"] == "INFO"
    assert line["logger"] == "workers.covers"
    assert (line["item_id"], line["seconds"]) == ("i\n1", 0.5)
    assert str(line["time"]).endswith("+00:00")


def test_an_exception_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(SECRETS)
    try:
        raise RuntimeError("boom hunter2hunter2")
    except RuntimeError:
        logging.getLogger("x").exception("failed")
    (line,) = lines(capsys)
    assert "RuntimeError: boom ***" in str(line["error"])


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize(
    "said",
    [
        "key AKIAEXAMPLE here",
        'the secret quo"ted/secret here',
        "https://s3/b/k?X-Amz-Credential=abc%2Fdef&X-Amz-Signature=0123456789abcdef",
        "redis://user:pa55word-in-url@host:6379",
        "Authorization: Bearer abcdefg-bearer",
        "password=letmein-please",
        {"token": "t0ken-value"},
    ],
)
def test_secrets_are_never_written(capsys: pytest.CaptureFixture[str], log_format: str, said: object) -> None:
    configure(SECRETS.model_copy(update={"log_format": log_format}))
    logging.getLogger("x").warning("%s", said, extra={"also": said})
    written = capsys.readouterr().err
    for secret in (
        "AKIAEXAMPLE",
        "quo",
        "0123456789abcdef",
        "abc%2Fdef",
        "pa55word-in-url",
        "abcdefg-bearer",
        "letmein-please",
        "t0ken-value",
    ):
        assert secret not in written
    assert "***" in written


def test_the_level_holds_and_libraries_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    configure(SECRETS)
    logging.getLogger("workers").debug("too fine")
    logging.getLogger("botocore.endpoint").info("chatty")
    logging.getLogger("botocore.endpoint").warning("serious")
    assert [line["message"] for line in lines(capsys)] == ["serious"]


def test_what_was_never_said_is_let_through_whatever_the_clock_shows() -> None:
    """`now - (now - 0.1)` is less than 0.1 for half of all clocks."""
    for _ in range(100):
        record = logging.makeLogRecord({"name": "aiokafka", "levelno": logging.ERROR, "msg": "away"})
        assert Repeats(("aiokafka",), seconds=0.1).filter(record)


def test_a_library_says_the_same_once_in_a_while_and_we_always() -> None:
    repeats = Repeats(("aiokafka",), seconds=0.1)

    def said(name: str, number: int, level: int = logging.ERROR) -> str | None:
        record = logging.makeLogRecord({"name": name, "levelno": level, "msg": "node %d is away", "args": (number,)})
        return record.getMessage() if repeats.filter(record) else None

    library = "aiokafka.consumer"
    assert [said(library, n) for n in (1, 1, 2, 1)] == ["node 1 is away", None, "node 2 is away", None]
    assert said(library, 1, logging.WARNING) == "node 1 is away"
    assert [said("workers.covers", 1), said("workers.covers", 1)] == ["node 1 is away"] * 2
    time.sleep(0.11)
    assert [said(library, 1), said(library, 1)] == ["node 1 is away (2 more since)", None]
    broken = logging.makeLogRecord({"name": library, "msg": "%d and %d", "args": (1,)})
    assert repeats.filter(broken)
