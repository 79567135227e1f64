"""Logs: one JSON object a line on stderr, or text for a terminal. Never a secret."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, SecretStr

from workers.settings import Settings
from workers.tracing import current_trace_id

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

# What a presigned address, a URL's user part and a header carry, whoever logs them.
_PATTERNS = (
    (re.compile(r"(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"']+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), r"\1***@"),
    (
        re.compile(r"((?:authorization|password|secret|token)[\"']?\s*[:=]\s*[\"']?(?:bearer\s+)?)[^\s,;\"']+", re.I),
        r"\1***",
    ),
)


class Redact:
    """Takes known secrets and what looks like one out of a text."""

    def __init__(self, secrets: set[str]) -> None:
        # Short ones would blot out ordinary words; longest first, in case one holds another.
        self._secrets = sorted((each for each in secrets if len(each) >= 6), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


def secrets_of(settings: BaseModel) -> set[str]:
    """Every secret value in the settings, at any depth."""
    found: set[str] = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            found.add(value.get_secret_value())
        elif isinstance(value, BaseModel):
            found |= secrets_of(value)
    return found


class JsonLines(logging.Formatter):
    """Fields: time, level, service, logger, message, trace_id and error where there is one, and what `extra` passed."""

    def __init__(self, redact: Redact, service: str = "") -> None:
        super().__init__()
        self._redact = redact
        self._service = {"service": service} if service else {}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (trace_id := current_trace_id()) is not None:
            line["trace_id"] = trace_id
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        # Redacted as values, not as JSON text: a secret may hold quotes.
        return json.dumps({name: self._clean(value) for name, value in line.items()}, ensure_ascii=False, default=str)

    def _clean(self, value: Any) -> Any:
        if isinstance(value, bool | int | float) or value is None:
            return value
        return self._redact(value if isinstance(value, str) else str(value))


class Text(logging.Formatter):
    """For a person at a terminal."""

    def __init__(self, redact: Redact) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


class Repeats(logging.Filter):
    """Lets a library say the same once in `seconds`: a client whose broker is away says it 20 times a second."""

    def __init__(self, loggers: tuple[str, ...], seconds: float = 10.0) -> None:
        super().__init__()
        self._loggers = set(loggers)
        self._seconds = seconds
        self._said: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in self._loggers:
            return True
        try:
            text = record.getMessage()
        except Exception:  # the handler says what is wrong with it
            return True
        key = (record.name, record.levelno, text)
        now = time.monotonic()  # a wall clock that is put back would silence it
        since, held_back = self._said.get(key, (-math.inf, 0))
        if now - since < self._seconds:
            self._said[key] = (since, held_back + 1)
            return False
        if len(self._said) > 1000:
            self._said.clear()
        self._said[key] = (now, 0)
        if held_back:
            record.msg, record.args = f"{text} ({held_back} more since)", None
        return True


# They tell of each request or rebalance at INFO.
_CHATTY = ("botocore", "boto3", "urllib3", "aiokafka", "faust", "mode", "kafka", "httpx", "httpcore", "feast", "PIL")


def configure(settings: Settings, service: str = "") -> None:
    """Set up the root logger of this process, once, before anything else logs.

    Args:
        service: in each JSON line, so that several services may share a log.
    """
    redact = Redact(secrets_of(settings))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(redact, service) if settings.log_format == "json" else Text(redact))
    handler.addFilter(Repeats(_CHATTY))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
