"""Who leads: pre-vote, vote, and when a voter takes the step.

A voter campaigns when its own support for the leader's peer has lapsed, or when it has known no leader for a
random time; it first asks whether it would be elected (pre-vote), so that a node which was cut off does not
raise the term of those who were not. One that supports its leader refuses both (Ongaro 2014, sections 3.4,
4.2.3, 9.6). Learners never campaign, but they vote when asked: they may be voters and not know it yet.

Nobody campaigns whom a majority does not support, and each campaign that brings no leader doubles the time
until the next one, up to `PATIENCE_MAX` times. Ten hosts that started together on two cores were so busy
asking for hundreds of slots that their beats came too late, and whoever was elected had to resign. A peer
that comes back is a new chance, taken at once.

All roles are entered here, each by its one door.

    FOLLOWER --no leader, no support--> PRE_CANDIDATE --majority would--> CANDIDATE --majority did--> LEADER
        ^_______________ a newer term, a leader, time is up, support of the majority is lost _______________|
"""

from __future__ import annotations

import zlib
from math import ceil, inf

from meshq.ids import PeerId
from meshq.replication.generations import generation_of, next_generation
from meshq.replication.leading import Leading
from meshq.replication.quorum import Config, Node
from meshq.replication.state import State
from meshq.replication.words import RequestVote, Role, Send, VoteReply

PATIENCE_MAX = 8  # times what a voter waits before it campaigns


class Elections:
    def __init__(self, state: State, leading: Leading) -> None:
        self._state = state
        self._leading = leading
        self._votes: dict[Node, bool] = {}
        self._transfer = False  # this campaign is the old leader's wish
        self._own_vote_token = 0
        self._tries = 0  # campaigns, ours and others', since a leader was known
        self.at = inf  # when to campaign

    # --------------------------------------------------------------------------------------------- doors
    def become_follower(self, term: int, leader: Node | None) -> None:
        s = self._state
        if term == s.term and s.role is Role.FOLLOWER and leader == s.leader:
            return
        was_leader = s.role is Role.LEADER
        s.set_hard(term, s.hard.vote if term == s.term else None)
        if s.is_stale:
            s.forget_decisions()
        s.role = Role.FOLLOWER
        s.leader = leader
        if leader is not None:
            self._tries = 0
        if was_leader:
            self._leading.end()
        self.arm()
        s.tell_role(serves=False)

    def become_pre_candidate(self) -> None:
        s = self._state
        s.role = Role.PRE_CANDIDATE
        s.leader = None
        self._votes = {s.me: True}
        self._tries += 1
        self._arm_again()
        s.tell_role(serves=False)
        self._ask(s.term + 1, pre=True)
        self._count()

    def become_candidate(self, *, transfer: bool) -> None:
        s = self._state
        s.set_hard(s.term + 1, s.me)
        s.role = Role.CANDIDATE
        s.leader = None
        self._votes = {}
        self._transfer = transfer
        self._arm_again()
        s.tell_role(serves=False)
        self._ask(s.term, pre=False)
        self._own_vote_token = s.token + 1  # the Persist of this turn: our own vote counts when it is done

    def become_leader(self, config: Config | None = None) -> None:
        s = self._state
        s.role = Role.LEADER
        s.leader = s.me
        self._tries = 0
        self.at = inf
        s.tell_role(serves=False)
        self._leading.begin(config)

    def begin_generation(self, config: Config, draw: int) -> None:
        """Lead without having been elected: a person said that those are gone who could have done it."""
        s = self._state
        s.begin_generation(next_generation(s.term, draw))
        self.become_leader(config)

    # --------------------------------------------------------------------------------------- campaigning
    def may_campaign(self) -> bool:
        """A voter of the newest configuration, or of one that may still hold since the newest is not decided;
        or the mirror of a voter that has lost something. Not with a stale log: its configuration is of voters
        that were given up.

        A node that the newest one leaves out may be the only one to have it on disk: unless it leads once
        more nobody can be elected (section 4.2.2).
        """
        s = self._state
        is_voter = any(config.is_voter(s.me) for _, config in s.configs.history)
        may = s.may_lead and not s.frozen and not s.installing and not s.is_stale
        return may and (is_voter or s.may_stand_in) and s.role is not Role.LEADER

    def on_tick(self) -> None:
        s = self._state
        if s.now < self.at:
            return
        if not self.may_campaign():
            self._arm_again()
        elif self._is_supported():
            self.become_pre_candidate()
        elif s.leader is not None:
            self.become_follower(s.term, None)
        else:
            self._arm_again()

    def _is_supported(self) -> bool:
        """Whether a majority treats this host as alive. Else it would not stay leader (`quorum_s`), and hosts
        that hardly keep up need their time to tell each other that they are alive.
        """
        s = self._state
        return s.config.has_majority([n for n in s.config.nodes() if n == s.me or n.peer in s.supported_by])

    def on_timeout_now(self, frm: Node) -> None:
        """The leader hands over: no pre-vote, and those who support it will vote all the same."""
        if frm == self._state.leader and self.may_campaign():
            self.become_candidate(transfer=True)

    def _ask(self, term: int, *, pre: bool) -> None:
        s = self._state
        last = s.log.last
        message = RequestVote(term, last.index, last.term, pre, self._transfer and not pre)
        for node in sorted({*s.config.voters, *s.config.outgoing} - {s.me}):
            if pre:
                s.out.append(Send(node, message))
            else:
                s.promise(node, message)

    def on_persisted(self) -> None:
        s = self._state
        if s.role is Role.CANDIDATE and s.persisted >= self._own_vote_token and s.me not in self._votes:
            self._votes[s.me] = True
            self._count()

    def on_vote(self, frm: Node, reply: VoteReply) -> None:
        s = self._state
        role = Role.PRE_CANDIDATE if reply.pre else Role.CANDIDATE
        if s.role is role and (not reply.granted or reply.term == s.term + reply.pre):
            self._votes[frm] = reply.granted
            self._count()

    def _count(self) -> None:
        s = self._state
        if s.config.has_majority([n for n, yes in self._votes.items() if yes]):
            if s.role is Role.PRE_CANDIDATE:
                self._transfer = False
                self.become_candidate(transfer=False)
            else:
                self.become_leader()
        elif s.config.has_lost([n for n, yes in self._votes.items() if not yes]):
            self.become_follower(s.term, None)

    # -------------------------------------------------------------------------------------------- voting
    def on_request(self, frm: Node, m: RequestVote) -> None:
        """The term is not below ours; of a real vote it is ours by now."""
        s = self._state
        free = m.term > s.term if m.pre else s.hard.vote in (None, frm) and s.leader in (None, frm)
        last = s.log.last
        level = (m.last_term, m.last_index) >= max((last.term, last.index), s.hard.lost)
        level = level and not self._is_of_old(m.last_term) and not s.rolled_back
        alone = s.decides_alone and not (s.frozen or s.is_stale or s.installing)  # then it leads itself
        granted = free and level and not alone and (m.transfer or not self.follows_a_live_leader())
        if m.pre:
            if granted:
                self._let_pass(frm)
            s.promise(frm, VoteReply(m.term if granted else s.term, granted, True))
            if s.role is Role.LEADER:
                self._leading.feeding.on_linked(frm)  # an idle leader would not come to tell it who leads
            return
        if granted:
            s.set_hard(s.term, frm)
            self._arm_again()
        s.promise(frm, VoteReply(s.term, granted))

    def _let_pass(self, frm: Node) -> None:
        """One that would be elected asks before us, or with us: of two that ask at once one stands back.

        A leader's end is news to all its voters in the same moment, of hundreds of slots at a time, so that
        campaigns cross however their starts are spread, and a vote that is split costs `election_s`. Which of
        two goes first is drawn by slot. Nobody waits longer than `pass_s`, less than the time in which one
        asks again: who asks and never hears an answer holds nobody up.
        """
        s = self._state
        self._tries += 1
        wait_s = (s.settings.pass_s + s.rng.random() * s.settings.hurry_s) * self._patience()
        until = self._together(s.now + wait_s)
        if s.role is Role.PRE_CANDIDATE and self._draw(frm) < self._draw(s.me):
            self.become_follower(s.term, None)
            self.at = until
        elif s.role is Role.FOLLOWER:
            self.at = max(self.at, until)

    def _draw(self, node: Node) -> tuple[int, Node]:
        return zlib.crc32(node.peer, self._state.slot), node

    def _is_of_old(self, last_term: int) -> bool:
        """Whether a candidate's log is as stale as this node's may be."""
        return generation_of(last_term) < generation_of(self._state.term)

    def follows_a_live_leader(self) -> bool:
        s = self._state
        if s.role is Role.LEADER:
            return True
        return s.leader is not None and s.leader.peer in s.supports

    # ---------------------------------------------------------------------------------------------- timer
    def on_heard_leader(self) -> None:
        """The leader sent something: if it is not supported, that buys it the time to be."""
        self.arm()

    def arm(self) -> None:
        s = self._state
        if s.role is Role.LEADER or self.follows_a_live_leader():
            self.at = inf
        elif s.config.voters == (s.me,) and not s.config.outgoing and self.may_campaign():
            self.at = s.now  # there is nobody to wait for
        else:
            self._arm_again()

    def on_support_got(self) -> None:
        """One more peer treats this host as alive."""
        if self._state.role is Role.FOLLOWER and self._state.leader is None:
            self.at = min(self.at, self._soon(1))

    def on_support_given(self, lost: PeerId | None) -> None:
        """Support for the leader's peer began, or lapsed (`lost`)."""
        s = self._state
        if s.role is not Role.FOLLOWER:
            return
        if lost is not None:
            # In the ring's order and not at random: whoever lost a peer takes the step for all its slots in
            # one turn, with one message to each and one sync, and others' turn comes when that is over.
            t, ahead = s.settings, s.ahead
            if ahead is None:
                self.at = min(self.at, s.now + s.rng.random() * t.hurry_s)
            else:
                self.at = min(self.at, s.now + sum(peer != lost for peer in ahead) * t.hurry_rank_s)
        elif self.follows_a_live_leader():
            self.at = inf

    def _arm_again(self) -> None:
        self.at = self._soon(self._patience())

    def _soon(self, patience: int) -> float:
        s, t = self._state, self._state.settings
        wait_s = (t.election_s + s.rank * t.rank_s + s.rng.random() * t.spread_s) * patience
        return self._together(s.now + wait_s)

    def _together(self, moment: float) -> float:
        """Rounded up, so that many of a host's slots campaign in one turn: one message to each, one sync."""
        step = self._state.settings.together_s
        return ceil(moment / step) * step

    def _patience(self) -> int:
        return min(1 << max(0, min(self._tries, 8) - 1), PATIENCE_MAX)
