"""What a replica tells of itself: nothing here changes anything.

Some of it only a leader knows (`match`, `copies`, `catching_up`, `serves`), and some is what it has on disk,
which may be less than what it has heard of (`commit_index`, `kept`).
"""

from __future__ import annotations

from meshq.ids import Slot
from meshq.replication.elections import Elections
from meshq.replication.leading import Leading
from meshq.replication.quorum import Config, Node
from meshq.replication.state import State
from meshq.replication.window import Log
from meshq.replication.words import GENESIS, Hard, Position, Role


class Facts:
    _state: State
    _leading: Leading
    _elections: Elections
    log: Log

    @property
    def slot(self) -> Slot:
        return self._state.slot

    @property
    def role(self) -> Role:
        return self._state.role

    @property
    def term(self) -> int:
        return self._state.term

    @property
    def hard(self) -> Hard:
        return self._state.hard

    @property
    def is_stale(self) -> bool:
        """Whether what is here is of an older generation than is known to exist."""
        return self._state.is_stale

    @property
    def follows_a_live_leader(self) -> bool:
        return self._elections.follows_a_live_leader()

    @property
    def leader(self) -> Node | None:
        return self._state.leader

    @property
    def commit_index(self) -> int:
        """Decided and durable here."""
        return self._state.delivered

    @property
    def last(self) -> Position:
        return self._state.log.last

    @property
    def config(self) -> Config:
        """The newest appended one: the one that holds."""
        return self._state.configs.newest

    @property
    def frozen(self) -> bool:
        """Whether it does not vote as ever, because of what may be lost here."""
        return self._state.frozen

    @property
    def serves(self) -> bool:
        """Whether it leads and knows all that was decided before."""
        return self._state.role is Role.LEADER and self._leading.serves

    @property
    def settled_config(self) -> tuple[int, Config]:
        """The newest one that was handed on as committed, and the index that set it."""
        return self._state.configs.history[0]

    @property
    def config_index(self) -> int:
        """The entry that set `config`."""
        return self._state.configs.index

    @property
    def is_settled(self) -> bool:
        """Whether it serves and its newest configuration is committed: it may be changed."""
        return self.serves and self._state.configs.index <= self._state.delivered

    @property
    def is_witness(self) -> bool:
        """Whether it keeps payloads only while somebody lacks them (witnesses.py)."""
        return self._state.is_witness

    @property
    def everywhere(self) -> int:
        """A witness's: of log and payloads nobody needs what comes up to here."""
        return min(self._state.everywhere, self._state.delivered)

    def match(self) -> dict[Node, int]:
        """A leader's view, or as it was last one: up to which index each node has its log on disk."""
        leading = self._leading
        match = {node: p.match for node, p in leading.followers.items()} or dict(leading.matched)
        match[self._state.me] = self._state.log.durable
        return match

    def catching_up(self) -> set[Node]:
        """A leader's view: who is far from level, whatever `match` says."""
        return self._leading.feeding.catching_up()

    def copies(self) -> dict[Node, int]:
        """The same of those that keep payloads: who a receipt counts."""
        match, witnesses = self.match(), self._state.witnesses()
        return {node: index for node, index in match.items() if node not in witnesses} if witnesses else match

    @property
    def is_handing_over(self) -> bool:
        return self._leading.hand_over.to is not None

    def left_alone(self, now: float) -> set[Node]:
        """Voters that did not take the lead when it was handed to them, for some time after that."""
        return self._leading.hand_over.left_alone(now)

    def kept(self) -> Position:
        """Up to where nothing would be lost by `recover` here: what is behind may have been decided otherwise
        elsewhere, or be missing. Of a newer generation nothing is known where the log is stale.
        """
        log, index = self._state.log, self._state.delivered
        if self._state.is_stale:
            return GENESIS
        return log.position(index) or Position(index, log.term_at(index) or 0, b"")

    def kept_ms(self) -> int:
        """The time of that entry, 0 where it is not known: lost records are not older."""
        log, index = self._state.log, self._state.delivered
        if self._state.is_stale:
            return 0
        if log.base.index < index:
            return log.item(index).entry.timestamp_ms
        return log.last_timestamp_ms if index == log.last.index else 0

    @property
    def is_quiet(self) -> bool:
        """Nothing is on its way to disk, and it neither leads nor campaigns; who only asks whether it might
        has promised nothing. (A node that was left out asks for ever.)
        """
        idle = self._state.role in (Role.FOLLOWER, Role.PRE_CANDIDATE)
        return idle and self._state.is_durable() and not self._state.installing
