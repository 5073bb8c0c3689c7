"""Events and effects in words, for a trace and for the scripts of tests/testdata."""

from __future__ import annotations

from meshq.entries import EntryKind
from meshq.replication.generations import show_term as at
from meshq.replication.quorum import Config, Node, decode_config
from meshq.replication.words import (
    AppendEntries,
    AppendReply,
    Commit,
    Damaged,
    Diverged,
    GenerationSeen,
    InstallSnapshot,
    Item,
    LeaderGone,
    LogRead,
    Message,
    PeerLinked,
    Persist,
    Persisted,
    ReadFailed,
    ReadLog,
    ReadReady,
    ReadSnapshot,
    Received,
    RequestVote,
    Send,
    SnapshotRead,
    SnapshotReply,
    SnapshotStored,
    StoreSnapshot,
    SupportGiven,
    SupportGot,
    TellConfig,
    TellRole,
    Ticked,
    TimeoutNow,
    VoteReply,
)
from tests.simulation.oracle import show


def show_item(item: Item) -> str:
    """Index/term, and what it is."""
    entry = item.entry
    place = f"{entry.index}/{at(entry.term)}"
    if entry.kind is EntryKind.CONFIG:
        return f"{place} config {show_config(decode_config(entry.body))}"
    if entry.kind is EntryKind.NOOP:
        return f"{place} noop"
    return place if item.payload else f"{place} bare"


def show_items(items: tuple[Item, ...]) -> str:
    if len(items) > 3:
        return f"[{show_item(items[0])} .. {show_item(items[-1])}]"
    return "[" + ", ".join(map(show_item, items)) + "]"


def show_config(config: Config) -> str:
    text = show_nodes(config.voters) or "nobody"
    if config.outgoing:
        text += " with outgoing " + show_nodes(config.outgoing)
    if config.learners:
        text += " learning " + show_nodes(config.learners)
    if config.witnesses:
        text += " witness " + show_nodes(config.witnesses)
    return text


def show_nodes(nodes: tuple[Node, ...]) -> str:
    return " ".join(map(show, nodes))


def show_message(m: Message) -> str:
    match m:
        case RequestVote():
            name = "RequestPreVote" if m.pre else "RequestVote"
            return (
                f"{name} term {at(m.term)}, log ends {m.last_index}/{at(m.last_term)}"
                + ", transfer" * m.transfer
            )
        case VoteReply():
            return f"{'Pre' * m.pre}VoteReply term {at(m.term)}, {'granted' if m.granted else 'refused'}"
        case AppendEntries():
            text = f"AppendEntries term {at(m.term)} after {m.prev.index}/{at(m.prev.term)}"
            text = f"{text} {show_items(m.items)} commit {m.commit}" + f" round {m.round}" * bool(m.round)
            return text + f" everywhere {m.everywhere}" * bool(m.everywhere)
        case AppendReply():
            text = f"ok up to {m.match}" if m.ok else f"go back to {m.match}/{at(m.match_term)}"
            text += f" round {m.round}" * bool(m.round) + f", lacks up to {m.lacks}" * bool(m.lacks)
            return f"AppendReply term {at(m.term)}, {text}"
        case InstallSnapshot():
            text = f"InstallSnapshot term {at(m.term)} of {m.meta.last.index}/{at(m.meta.last.term)}"
            return f"{text} from byte {m.position}, {len(m.data)} bytes" + ", the last" * m.done
        case SnapshotReply():
            return f"SnapshotReply term {at(m.term)} of {m.index}, next byte {m.position}"
        case TimeoutNow():
            return f"TimeoutNow term {at(m.term)}"
    raise AssertionError(m)


def show_event(event: object) -> str:
    match event:
        case Ticked():
            return "time passed"
        case Received(frm, message):
            return f"from {show(frm)}: {show_message(message)}"
        case Persisted(token):
            return f"write {token} is durable"
        case LogRead():
            return f"read for {show(event.to)}: {show_items(event.items)}"
        case PeerLinked(node):
            return f"connection to {show(node)}"
        case SupportGiven() | SupportGot():
            return show_effect(event)
        case LeaderGone(peer, term):
            return f"n{int.from_bytes(peer, 'big')} does not lead in term {at(term)}"
        case SnapshotRead():
            return f"read for {show(event.to)}: snapshot of {event.meta.last.index} from {event.position}"
        case GenerationSeen(term):
            return f"somebody leads in term {at(term)}"
        case SnapshotStored():
            return (
                f"snapshot of {event.meta.last.index} is on disk up to {event.position}"
                + " whole" * event.done
            )
    raise AssertionError(event)


def show_effect(e: object) -> str:
    match e:
        case str():
            return e
        case Send():
            return f"send {show(e.to)}: {show_message(e.message)}"
        case Persist():
            parts = []
            if e.hard is not None:
                vote = f", voted for {show(e.hard.vote)}" if e.hard.vote else ""
                parts.append(
                    f"term {at(e.hard.term)}{vote}"
                    + f", repair until {e.hard.repair_until}" * bool(e.hard.repair_until)
                    + f", bare until {e.hard.bare_until}" * bool(e.hard.bare_until)
                )
            if e.truncate_from is not None:
                parts.append(f"truncate from {e.truncate_from}")
            if e.items:
                parts.append(f"append {show_items(e.items)}")
            return f"write {e.token}: " + "; ".join(parts)
        case Commit():
            return f"decided: {show_items(e.items)}"
        case TellRole():
            leader = f", leader {show(e.leader)}" if e.leader and e.role.name != "LEADER" else ""
            return (
                f"{e.role.name.lower().replace('_', '-')} in term {at(e.term)}{leader}"
                + ", serves" * e.serves
            )
        case TellConfig():
            return f"members are {show_config(e.config)}, by entry {e.index}"
        case ReadReady():
            return f"reads {list(e.refs)} see entries up to {e.index}"
        case ReadFailed():
            return f"reads {list(e.refs)} failed"
        case ReadLog():
            return f"read log from {e.from_index} for {show(e.to)}"
        case ReadSnapshot():
            return f"read snapshot from byte {e.position} for {show(e.to)}"
        case StoreSnapshot():
            return f"store snapshot of {e.meta.last.index} from byte {e.position}" + ", whole" * e.done
        case Damaged():
            return f"entry {e.index} is damaged"
        case Diverged():
            return "has decided something else: begins again"
        case SupportGiven():
            return f"{'supports' if e.given else 'no longer supports'} n{int.from_bytes(e.peer, 'big')}"
        case SupportGot():
            return f"n{int.from_bytes(e.peer, 'big')} {'supports it' if e.got else 'no longer supports it'}"
    return str(e)
