"""Clocks: whether this host's clock can be believed, judged by those of the other peers.

Peers tell each other the time with answers they exchange anyway (Welcome, Pong); half the round trip aside,
that is how far apart two clocks are. The median of all, this one among them, is the mesh's time, if most of
them are within OFF_MS of it: one clock that is wrong, by however much, does not move it.

    off the median by more than OFF_MS   it says so; no retention by age, no schedules; and what it appends
                                         is stamped with the mesh's time, not with its own: times never
                                         decrease along a log, so one from the future would hold up all that
                                         come after it
    no two of the clocks agree           nobody knows: said so, no retention, no schedules, own time
    nothing to compare with yet          the same, as long as there are other peers
    earlier than before a restart        said; and while no majority says that it is right now, distrusted for
                                         SETTLE_S, after which the only clock there is has to do

A clock that is set while the peer runs is noticed at once, by the one that nobody sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from meshq.errors import StoreCorrupt
from meshq.ids import LOCAL_SLOT, PeerId
from meshq.peer.core.context import Context
from meshq.peer.core.events import ClockTold
from meshq.peer.core.journal import Journal

OFF_MS: Final = 30_000
RIGHT_MS: Final = 20_000  # back within this it is right again: no to and fro at the limit
STEP_MS: Final = 1_000  # set by so much at once
ROUND_TRIP_S_MAX: Final = 10.0  # an answer that took longer says nothing
STALE_S: Final = 600.0  # a clock that was not heard for so long does not count
SAVE_S: Final = 60.0
SETTLE_S: Final = 3_600.0
LOOK_S: Final = 1.0
_ROW: Final = b"W"


@dataclass
class Clocks:
    ctx: Context
    journal: Journal
    went_back_ms: int = 0  # across the last restart, while that is in question
    offset_ms: int | None = None  # of this clock from the median; None: not known
    state: str = "right"  # or why it is not trusted: `off`, `disagreement`, `unknown`, `went back`
    _heard: dict[PeerId, tuple[int, float]] = field(default_factory=dict)  # (ahead of this one, when)
    _skew_ms: float | None = None  # wall clock, less the one that nobody sets
    _saved_ms: int = 0
    _look_at: float = 0.0
    _save_at: float = 0.0
    _began: float = 0.0
    _said_wrong: bool = False

    # ------------------------------------------------------------------------------------ beginning
    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Raises: StoreCorrupt."""
        if len(row := rows.get(_ROW, bytes(8))) != 8:
            raise StoreCorrupt("the time of the last run cannot be read")
        self._saved_ms = int.from_bytes(row, "big")

    def start(self) -> None:
        self._began, self._save_at = self.ctx.now, self.ctx.now + SAVE_S
        back_ms = self._saved_ms - self.ctx.wall_ms
        if back_ms > OFF_MS:
            self.went_back_ms = back_ms
            text = f"this host's clock is {_show(back_ms)} behind what it was before the restart"
            self._tell("ClockWentBack", text, {"seconds": back_ms / 1000}, wrong=True)
        self._judge()

    # --------------------------------------------------------------------------------- what is heard
    def on_time(self, now: float, wall_ms: int) -> int:
        """Each time the clocks are read. What is appended now is stamped with what is returned."""
        before, self._skew_ms = self._skew_ms, wall_ms - now * 1000
        step_ms = round(self._skew_ms - before) if before is not None else 0
        if abs(step_ms) > STEP_MS:
            self._heard = {p: (ahead - step_ms, at) for p, (ahead, at) in self._heard.items()}
            self.ctx.count("clock_steps")
            self._judge()
        return self.mesh_ms(wall_ms) if self.state == "off" else wall_ms

    def on_heard(self, peer: PeerId, theirs_ms: int, *, round_trip_s: float = 0.0) -> None:
        """What that peer's clock said, half a round trip ago. 0: it does not tell (an older version)."""
        if theirs_ms and round_trip_s <= ROUND_TRIP_S_MAX:
            ahead_ms = theirs_ms + round(round_trip_s * 500) - self.ctx.wall_ms
            self._heard[peer] = ahead_ms, self.ctx.now
            self._judge()

    def tick(self) -> None:
        if self.ctx.now >= self._look_at:
            self._look_at = self.ctx.now + LOOK_S
            self._judge()
        if self.ctx.now >= self._save_at:
            self.save()

    def save(self) -> None:
        """So that the next run notices when the clock is behind this. While it is in question, what was."""
        self._save_at = self.ctx.now + SAVE_S
        if self.went_back_ms:
            return
        row = (_ROW, self.ctx.wall_ms.to_bytes(8, "big"))
        self.ctx.disk.submit(LOCAL_SLOT, rows=(row,), done=lambda: None, failed=lambda _: None)

    # ------------------------------------------------------------------------------------- judging
    def is_trusted(self) -> bool:
        """Whether this host's clock may decide what is old, or due."""
        return self.state == "right"

    def mesh_ms(self, wall_ms: int) -> int:
        """The time of the mesh, where it is known to be another than this clock's."""
        return wall_ms - self.offset_ms if self.state == "off" and self.offset_ms is not None else wall_ms

    def ahead_ms(self, peer: PeerId) -> int | None:
        """How far that peer's clock is ahead of the median; of this one's, while there is none."""
        if peer == self.ctx.me.peer:
            return self.offset_ms
        heard = self._heard.get(peer)
        return heard[0] + (self.offset_ms or 0) if heard is not None else None

    def _judge(self) -> None:
        registered, now = self.ctx.registry.peers, self.ctx.now
        self._heard = {
            p: (ahead, at) for p, (ahead, at) in self._heard.items() if p in registered and now - at < STALE_S
        }
        clocks = [0, *(ahead for ahead, _ in self._heard.values())]
        middle = round(median(clocks))
        agree = 2 * sum(abs(x - middle) <= OFF_MS for x in clocks) > len(clocks)
        self.offset_ms = -middle if agree and len(clocks) > 1 else None
        self._judge_past(agree and len(clocks) > 1)
        limit_ms = RIGHT_MS if self.state == "off" else OFF_MS
        if len(clocks) == 1 and len(registered) > 1:
            state = "unknown"
        elif not agree:
            state = "disagreement"
        elif abs(middle) > limit_ms:
            state = "off"
        else:
            state = "went back" if self.went_back_ms else "right"
        self._enter(state)

    def _judge_past(self, is_compared: bool) -> None:
        """Whether it matters any more that the clock was later once: others say what time it is, the time has
        come again, or nobody else will ever say.
        """
        there_again = self.ctx.wall_ms >= self._saved_ms - OFF_MS
        settled = is_compared or there_again or self.ctx.now - self._began > SETTLE_S
        if self.went_back_ms and settled:
            self.went_back_ms, self._save_at = 0, self.ctx.now

    def _enter(self, state: str) -> None:
        before, self.state = self.state, state
        if state == before:
            return
        if state == "right" and self._said_wrong:
            self._tell("ClockRight", "this host's clock can be relied on again", {}, wrong=False)
        elif state not in ("right", "unknown"):  # at a start it is unknown, and nothing is wrong with that
            facts = {"offset_ms": self.offset_ms, "why": state}
            self._tell("ClockOff", f"{self.why()}: {DONE_WITHOUT}", facts, wrong=True)

    def why(self) -> str | None:
        """Why it is not trusted, in words."""
        match self.state:
            case "right":
                return None
            case "off":
                way = "ahead of" if (self.offset_ms or 0) > 0 else "behind"
                return f"this host's clock is {_show(abs(self.offset_ms or 0))} {way} the other peers' clocks"
            case "disagreement":
                return "the peers' clocks do not agree, and no majority says which is right"
            case "went back":
                return f"this host's clock went back by {_show(self.went_back_ms)} across a restart"
            case _:
                return "this host's clock was not compared with another peer's yet"

    def _tell(self, event: str, text: str, facts: dict[str, Any], *, wrong: bool) -> None:
        self._said_wrong = wrong
        self.journal.on_clock(event, {**facts, "text": text})
        self.ctx.out.append(ClockTold(event, text, wrong))

    def facts(self, ahead_ms: int) -> dict[str, Any]:
        """For `status`. `ahead_ms`: how far the newest record led here is in the future."""
        return {
            "trusted": self.is_trusted(),
            "why": self.why(),
            "offset_ms": self.offset_ms,
            "compared_with": len(self._heard),
            "records_ahead_ms": max(0, ahead_ms),
        }


DONE_WITHOUT: Final = "no retention by age and no schedules here until it is set right"


def _show(ms: int) -> str:
    seconds = ms / 1000
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
