"""What a member can become, and by what: the whole of it as one table.

Somebody silent is accused, somebody accused has its time to refute, who does not refute is dead, and only its
own newer signed record brings it back. At an equal incarnation alive < suspect < dead; a higher incarnation
overrides all of them (SWIM, section 4.2). What is not in the table cannot happen: `Table` asks before.

The picture in docs/membership.md is drawn from here (`make docs`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from meshq.gossip.words import State


class Belief(StrEnum):
    """As `State`, but for the two kinds of dead: to others both are."""

    UNHEARD = "unheard"  # only old notes tell of it, or nothing does: it has not been heard of since
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"

    @property
    def state(self) -> State:
        return State.DEAD if self is Belief.UNHEARD else State(self.value)


class Cause(StrEnum):
    RENEWED = "a newer record, fresh"
    NOTED = "a newer record, from old notes"
    SAID_LEFT = "a newer record that says it left"
    ANSWERED = "a datagram or an answer of its own"
    ACCUSED = "an accusation of this incarnation"
    DECLARED = "a death told of this incarnation"
    UNREFUTED = "the suspicion ran out"
    TAKEN_BACK = "this host stood still, and was the only accuser"
    RECLAIMED = "dead for long"


TRANSITIONS: Final[dict[tuple[Belief, Cause], Belief]] = {
    (Belief.UNHEARD, Cause.RENEWED): Belief.ALIVE,
    (Belief.UNHEARD, Cause.NOTED): Belief.UNHEARD,  # and is asked
    (Belief.UNHEARD, Cause.SAID_LEFT): Belief.LEFT,
    (Belief.UNHEARD, Cause.ANSWERED): Belief.ALIVE,
    (Belief.ALIVE, Cause.RENEWED): Belief.ALIVE,
    (Belief.ALIVE, Cause.NOTED): Belief.ALIVE,
    (Belief.ALIVE, Cause.SAID_LEFT): Belief.LEFT,
    (Belief.ALIVE, Cause.ACCUSED): Belief.SUSPECT,
    (Belief.ALIVE, Cause.DECLARED): Belief.DEAD,
    (Belief.SUSPECT, Cause.RENEWED): Belief.ALIVE,  # refuted
    (Belief.SUSPECT, Cause.NOTED): Belief.ALIVE,
    (Belief.SUSPECT, Cause.SAID_LEFT): Belief.LEFT,
    (Belief.SUSPECT, Cause.ACCUSED): Belief.SUSPECT,  # confirmed by one more
    (Belief.SUSPECT, Cause.DECLARED): Belief.DEAD,
    (Belief.SUSPECT, Cause.UNREFUTED): Belief.DEAD,
    (Belief.SUSPECT, Cause.TAKEN_BACK): Belief.ALIVE,
    (Belief.DEAD, Cause.RENEWED): Belief.ALIVE,  # refuted late, or restarted
    (Belief.DEAD, Cause.NOTED): Belief.UNHEARD,  # it was there when it signed that; it is asked
    (Belief.DEAD, Cause.SAID_LEFT): Belief.LEFT,
    (Belief.DEAD, Cause.RECLAIMED): Belief.UNHEARD,
    (Belief.LEFT, Cause.RENEWED): Belief.ALIVE,  # started again
    (Belief.LEFT, Cause.NOTED): Belief.UNHEARD,
    (Belief.LEFT, Cause.SAID_LEFT): Belief.LEFT,
}


def as_mermaid() -> str:
    """The table as a picture; steps to the same state are left out of it."""
    lines = ["stateDiagram-v2", f"    [*] --> {Belief.UNHEARD}: registered"]
    steps: dict[tuple[Belief, Belief], list[Cause]] = {}
    for (before, cause), after in TRANSITIONS.items():
        if before is not after:
            steps.setdefault((before, after), []).append(cause)
    lines += [f"    {before} --> {after}: {' / '.join(causes)}" for (before, after), causes in steps.items()]
    return "\n".join(lines) + "\n"


def as_markdown() -> str:
    """The table with a row for each cause and a column for each state; empty: it changes nothing."""
    lines = ["| | " + " | ".join(Belief) + " |", "|---" * (1 + len(Belief)) + "|"]
    for cause in Cause:
        cells = [TRANSITIONS.get((belief, cause)) for belief in Belief]
        lines.append(f"| {cause} | " + " | ".join(c or "" for c in cells) + " |")
    return "\n".join(lines) + "\n"
