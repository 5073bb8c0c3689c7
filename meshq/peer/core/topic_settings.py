"""A topic's settings as an Ask names them: read, checked, and shown again.

What is left out stays as it is (at `topic.create`: the default). For what is kept, null is no limit.
"""

from __future__ import annotations

from typing import Any, Final

from meshq import limits
from meshq.errors import UsageError
from meshq.levels import RETENTION, check_in_use
from meshq.messages import Ask, Retain, TopicInfo
from meshq.registry.commands import CreateTopic, SetTopic

_COUNT_MAX: Final = (1 << 62) - 1  # more: `UsageError`
_AGES: Final = {"retain_age_ms": "age_ms", "tombstone_age_ms": "tombstone_age_ms"}
_SIZES: Final = {"retain_bytes": "bytes", "retain_records": "records"}


def create_command(
    message: Ask,
    name: str,
    topic_id: bytes,
    *,
    partitions: int,
    record_bytes_max: int,
    replicas: int,
    level: int,
) -> CreateTopic:
    """`level`: the mesh's. Raises: UsageError."""
    return CreateTopic(
        name,
        topic_id,
        number(message, "partitions", partitions, limits.PARTITIONS_MAX),
        number(message, "record_bytes_max", record_bytes_max, limits.RECORD_BYTES_CEILING),
        number(message, "copies_min", 1, replicas),
        Retain(**{_field(name): value for name, value in _retain(message, level).items()}),
    )


def set_command(message: Ask, topic_id: bytes, *, replicas: int, level: int, change: bytes) -> SetTopic:
    """Raises: UsageError, also when nothing is named."""
    most = {
        "partitions": limits.PARTITIONS_MAX,
        "record_bytes_max": limits.RECORD_BYTES_CEILING,
        "copies_min": replicas,
    }
    named: dict[str, Any] = {}
    named |= {name: number(message, name, 1, top) for name, top in most.items() if name in message.args}
    named |= _retain(message, level)
    if not named:
        every = [*most, *_AGES, *_SIZES, "compact"]
        raise UsageError(f"nothing to set: give one of {', '.join(f'`{name}`' for name in every)}")
    return SetTopic(topic_id, change=change, **named)


def describe(info: TopicInfo) -> dict[str, Any]:
    retain = info.retain
    return {
        "name": info.name,
        "id": info.topic_id.hex(),
        "partitions": info.partitions,
        "record_bytes_max": info.record_bytes_max,
        "copies_min": info.copies_min,
        "retain_age_ms": retain.age_ms or None,
        "retain_bytes": retain.bytes or None,
        "retain_records": retain.records or None,
        "compact": retain.compact,
        "tombstone_age_ms": retain.tombstone_age_ms,
    }


def number(message: Ask, name: str, default: int, most: int, least: int = 1) -> int:
    """Raises: UsageError."""
    value = message.args.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"`{name}` must be a number from {least} to {most}")
    return value


def _retain(message: Ask, level: int) -> dict[str, Any]:
    """By the arguments' names, no limit as 0."""
    args, found = message.args, dict[str, Any]()
    for name in (*_AGES, *_SIZES):
        if name not in args:
            continue
        if args[name] is None and name != "tombstone_age_ms":
            found[name] = 0
        elif name in _AGES:
            found[name] = number(message, name, 0, limits.RETAIN_AGE_MS_MAX, limits.RETAIN_AGE_MS_MIN)
        else:
            found[name] = number(message, name, 0, _COUNT_MAX)
    if "compact" in args:
        if not isinstance(args["compact"], bool):
            raise UsageError("`compact` must be true or false")
        found["compact"] = args["compact"]
    if found:
        check_in_use(level, RETENTION, "retention")
    return found


def _field(name: str) -> str:
    return {**_AGES, **_SIZES}.get(name, name)
