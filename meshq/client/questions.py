"""What an application asks the mesh beside its records: which topics and groups there are, how they stand."""

from __future__ import annotations

from typing import Any

from meshq.client import groups as group_asks
from meshq.client.checking import check_seconds
from meshq.client.driver import ClientDriver
from meshq.client.facts import AskRequested, TopicsWanted
from meshq.client.groups import GroupInfo, GroupPartition, GroupReset, Redriven, To
from meshq.messages import TopicInfo
from meshq.topics import check_pattern


class Questions:
    """The part of a Mesh that asks; each call waits for its answer, at most for its `timeout`."""

    def __init__(self, driver: ClientDriver) -> None:
        self._driver = driver

    async def ask(self, what: str, args: dict[str, Any] | None = None, *, timeout: float = 30.0) -> Any:
        """An administrative request (docs/protocol.md lists them). Raises: what the peer answers, Unavailable
        when it was not sent, OutcomeUnknown when it was and no answer came."""
        check_seconds(timeout, "timeout")
        return await self._driver.ask(lambda t, d: AskRequested(t, what, args or {}, d), timeout=timeout)

    async def topics(self, pattern: str = "#", *, timeout: float = 30.0) -> list[TopicInfo]:
        """The topics that match, by name."""
        check_pattern(pattern)
        check_seconds(timeout, "timeout")
        found = await self._driver.ask(lambda t, d: TopicsWanted(t, pattern, d), timeout=timeout)
        return sorted(found, key=lambda info: info.name)

    async def groups(self, pattern: str = "#", *, timeout: float = 30.0) -> list[GroupInfo]:
        """The groups of all topics that match, by topic and name. Raises: Unavailable when the leader of some
        slot does not answer.
        """
        return await group_asks.groups(self._asking(timeout), check_pattern(pattern))

    async def group_show(self, topic: str, group: str, *, timeout: float = 30.0) -> list[GroupPartition]:
        """Where a group stands, by partition. Raises: UnknownGroup, Unavailable as `groups`."""
        return await group_asks.show(self._asking(timeout), topic, group)

    async def group_reset(
        self, topic: str, group: str, to: To, *, dry_run: bool = False, timeout: float = 30.0
    ) -> list[GroupReset]:
        """Have a group go on from elsewhere, in each partition: "earliest", "latest", an offset, or a
        datetime. What its members have in hand is theirs no more (`LeaseLost`). Raises: as `group_show`.
        """
        return await group_asks.reset(self._asking(timeout), topic, group, to, dry_run=dry_run)

    async def group_redrive(
        self,
        topic: str,
        group: str,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        timeout: float = 30.0,
    ) -> Redriven:
        """Have a group handed out again what is in its dead letters, the oldest first; each is put back once,
        whatever fails. Raises: as `group_show`.
        """
        return await group_asks.redrive(self._asking(timeout), topic, group, limit, dry_run=dry_run)

    async def group_delete(self, topic: str, group: str, *, timeout: float = 30.0) -> None:
        """Forget where a group stands, with its dead letters. Raises: Refused while it has members, and as
        `group_show`.
        """
        await self.ask("group.delete", {"topic": topic, "group": group}, timeout=timeout)

    def _asking(self, timeout: float) -> group_asks.Ask:
        return lambda what, args: self.ask(what, args, timeout=timeout)
