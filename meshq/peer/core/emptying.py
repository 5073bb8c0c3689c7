"""Emptying: a slot's copy here begins again with nothing.

Because the slot's members do without it, or because what was decided here is not what the slot's new
generation has. Term and vote stay, whatever goes: they are promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshq.errors import MeshqError, StoreError
from meshq.ids import SYSTEM_SLOT
from meshq.peer.core.hosts import Host, Tail
from meshq.replication import words
from meshq.replication.quorum import Config
from meshq.replication.saved import hard_row, snapshot_row
from meshq.replication.words import GENESIS
from meshq.streams.rows import begun_rows

if TYPE_CHECKING:
    from meshq.peer.core.slots import Slots


@dataclass(frozen=True, slots=True)
class Emptying:
    slots: Slots

    def empty(self, host: Host, index: int, config: Config) -> None:
        """This node is out, by this configuration, committed at this index: delete what is here, and begin as
        a node that never was a member.

        Term and vote stay. No vote leaves before the log has come to `index` again: added once more, it would
        pass configurations in which it was a voter, and whom it elected then would not know what was decided.
        """
        hard, term = host.replica.hard, host.replica.term
        until = max(index, hard.repair_until)
        self._clear(host, words.Hard(term, hard.vote, until, repair_term=term), config)

    def begin_again(self, host: Host) -> None:
        """What was decided here is not what the slot's new generation has: term and vote stay, no more."""
        self._clear(host, words.Hard(host.replica.term, host.replica.hard.vote), Config(()))

    def _clear(self, host: Host, hard: words.Hard, config: Config) -> None:
        if not host.replica.is_quiet or host.is_emptied or host.is_replaced:
            return
        gone = {*host.stream.partitions, *host.stream.dropping, *host.touched}
        row = snapshot_row(words.SnapshotMeta(GENESIS, config, host.replica.log.last_timestamp_ms))
        rows = (hard_row(hard), row, *begun_rows(0, gone))
        host.is_emptied = True

        def done() -> None:
            if host.slot == SYSTEM_SLOT:
                raise StoreError(
                    "the registry went on without what this copy had of it: start this peer again"
                )
            self.slots.hosting.restore(host.slot, dict(rows), tail=Tail(), aside={}, now=self.slots.now)
            self.slots.count("slots_emptied")
            self.slots.react.on_role(self.slots.hosts[host.slot])

        def failed(_: MeshqError) -> None:
            host.is_emptied = False

        self.slots.disk.submit(host.slot, rows=rows, replace=(), clear_aside=b"", done=done, failed=failed)
