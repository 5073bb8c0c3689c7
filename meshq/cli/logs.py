"""How a running peer logs: to standard error, as text for people or one JSON object a line for machines.

Messages carry their facts as fields (`event`, `peer`, `slot`, ...); both forms show them.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(form: Literal["text", "json"], level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # Without a route it tells of each packet that it could not send; where it failed in its own code helps
    # nobody but its developers.
    logging.getLogger("zeroconf").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and not logging.getLogger("zeroconf").isEnabledFor(logging.DEBUG):
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}", None
        record.exc_info = record.exc_text = None
    return True


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        line: dict[str, Any] = {
            "ts": _when(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": fields.pop("event", record.name),
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=_show)


class Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        event = fields.pop("event", "")
        extra = "".join(f" {k}={_show(v)}" for k, v in fields.items())
        when = f"{_when(record).astimezone():%Y-%m-%d %H:%M:%S}.{int(record.msecs):03d}"
        line = f"{when} {record.levelname:<7} {event + ': ' if event else ''}{record.getMessage()}{extra}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {k: v for k, v in vars(record).items() if k not in _STANDARD}


def _when(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _show(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
