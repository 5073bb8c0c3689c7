"""What the parts of the outbox's machine share: orders, what is on its way to disk, how much it holds.

Every order to the disk carries the outbox's state as it is then, so that the two can't disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshq.client.outbox import layout
from meshq.client.outbox.layout import STATE
from meshq.client.outbox.words import Effect, Loaded, Persist, Put
from meshq.errors import MeshqError


@dataclass(slots=True)
class _Order:
    done: Callable[[], None]
    failed: Callable[[MeshqError], None] | None = None


class Ledger:
    def __init__(self, loaded: Loaded) -> None:
        self.state = loaded.state
        self.queued_records, self.queued_bytes = loaded.queued_records, loaded.queued_bytes
        self.bound_bytes = 0
        self.now, self.wall_ms = 0.0, 0
        self.effects: list[Effect] = []
        self._orders: dict[int, _Order] = {}  # bounded by lanes, and by what is taken
        self._last = 0

    def look_at(self, now: float, wall_ms: int) -> None:
        self.now = now
        self.wall_ms = self.state.wall_ms = max(self.state.wall_ms, wall_ms)

    def draw_number(self) -> int:
        self._last += 1
        return self._last

    def persist(
        self,
        puts: Sequence[Put],
        deletes: Sequence[tuple[bytes, bytes]] = (),
        done: Callable[[], None] = lambda: None,
        failed: Callable[[MeshqError], None] | None = None,
    ) -> None:
        """One transaction, and what follows when it is on disk. `failed`: it may be given up."""
        token = self.draw_number()
        self._orders[token] = _Order(done, failed)
        self.state.queued_bytes = self.queued_bytes
        state = (STATE, layout.STATE_KEY, layout.encode(layout.STATE_KEY, self.state))
        self.effects.append(Persist(token, [*puts, state], deletes, fallible=failed is not None))

    def on_persisted(self, token: int) -> None:
        self._orders.pop(token).done()

    def on_not_persisted(self, token: int, error: MeshqError) -> None:
        order = self._orders.pop(token)
        if order.failed is not None:
            order.failed(error)

    @property
    def is_writing(self) -> bool:
        return bool(self._orders)

    def take_effects(self) -> list[Effect]:
        effects, self.effects = self.effects, []
        return effects
