"""Every bound in one table: nothing grows without a limit and a named answer when it is reached.

`docs/limits.md` is generated from here (`make docs`); code imports the constants by name.
"""

from __future__ import annotations

from typing import NamedTuple

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Limit(NamedTuple):
    name: str
    value: int
    what: str
    answer: str


_TABLE: list[Limit] = []


def _limit(name: str, value: int, what: str, answer: str) -> int:
    _TABLE.append(Limit(name, value, what, answer))
    return value


# fmt: off
# One line a limit, so that it reads as the table it becomes.

# Records and batches
RECORD_BYTES_MAX = _limit("RECORD_BYTES_MAX", MIB, "key + value + headers of one record (default of the topic setting `record_bytes_max`)", "`TooLarge`")
RECORD_BYTES_CEILING = _limit("RECORD_BYTES_CEILING", 4 * MIB, "highest `record_bytes_max` a topic may be set to", "`UsageError`")
HEADERS_MAX = _limit("HEADERS_MAX", 64, "headers of one record", "`TooLarge` at the client, `RemoteProtocolError` at a peer")
HEADERS_HELD_MAX = _limit("HEADERS_HELD_MAX", 72, "the same with what meshq adds to a dead letter", "`RemoteProtocolError` of who reads it")
BATCH_BYTES_MAX = _limit("BATCH_BYTES_MAX", 5 * MIB, "a batch as it travels, and its body decompressed", "`TooLarge`")
BATCH_RATIO_MAX = _limit("BATCH_RATIO_MAX", 128, "times a batch's body may grow when it is decompressed (above 64 KiB)", "`RemoteProtocolError`; the client sends such a batch uncompressed")
PRODUCE_BYTES_MAX = _limit("PRODUCE_BYTES_MAX", 16 * MIB, "decompressed bytes of the batches in one message", "`Overloaded` for the rest of them")
BATCH_RECORDS_MAX = _limit("BATCH_RECORDS_MAX", 16_384, "records in one batch", "`RemoteProtocolError`; the client seals earlier")

# Topics
TOPIC_BYTES_MAX = _limit("TOPIC_BYTES_MAX", 255, "a topic's name or a pattern", "`UsageError`")
PARTITIONS_MAX = _limit("PARTITIONS_MAX", 1024, "partitions of one topic", "`UsageError`")
TOPICS_MAX = _limit("TOPICS_MAX", 1_000_000, "topics of a mesh", "`Overloaded`")
PEERS_MAX = _limit("PEERS_MAX", 1_000, "registered peers of a mesh", "`Overloaded`")
LEFT_PEERS_KEPT = _limit("LEFT_PEERS_KEPT", 1_000, "peers that have left, and are refused at the door until they join again", "the one that left first is forgotten")
CLIENTS_MAX = _limit("CLIENTS_MAX", 100_000, "registered clients of a mesh", "`Overloaded`")
CAPABILITIES_MAX = _limit("CAPABILITIES_MAX", 64, "capabilities in one certificate", "`UsageError`")

# Retention
RETAIN_AGE_MS_MIN = _limit("RETAIN_AGE_MS_MIN", 1_000, "shortest age (ms) that a topic's records, or its tombstones, may be kept", "`UsageError`")
RETAIN_AGE_MS_MAX = _limit("RETAIN_AGE_MS_MAX", 100 * 365 * 86_400_000, "longest age (ms) that can be set", "`UsageError`: without a limit they are kept for ever")
COMPACT_KEYS_MAX = _limit("COMPACT_KEYS_MAX", 100_000, "keys that one compaction of a partition looks for (one partition of a peer at a time)", "the rest is looked for by the next one")
COMPACTED_COUNT_MAX = _limit("COMPACTED_COUNT_MAX", 65_536, "offsets that one compacted batch stands for", "the next ones get another batch")
TOMBSTONE_AGE_MS = _limit("TOMBSTONE_AGE_MS", 86_400_000, "how long (ms) a compacted topic keeps tombstones (default of the topic setting)", "they go with the next compaction")

# Producers
PRODUCER_RECEIPTS_KEPT = _limit("PRODUCER_RECEIPTS_KEPT", 32, "batches of one producer and partition whose receipts are kept; also its in-flight bound", "older repeats: `OutOfOrderSequence`")
PRODUCER_IDLE_MS = _limit("PRODUCER_IDLE_MS", 15 * 60_000, "how long an idle producer's sequence is remembered", "`UnknownProducer`")
OUTBOX_IDLE_MS = _limit("OUTBOX_IDLE_MS", 30 * 86_400_000, "the same of an outbox: how long it may be offline in the middle of a batch", "`UnknownProducer`; the outbox parks what may have been stored")
PRODUCERS_PER_SLOT_MAX = _limit("PRODUCERS_PER_SLOT_MAX", 20_000, "producer and partition pairs remembered in one slot", "`Overloaded` to new producers")
OUTBOXES_PER_SLOT_MAX = _limit("OUTBOXES_PER_SLOT_MAX", 10_000, "of those, outboxes", "`Overloaded` to new outboxes, which wait")
PRODUCER_BUFFER_BYTES = _limit("PRODUCER_BUFFER_BYTES", 32 * MIB, "records a producer holds unacknowledged (setting `buffer_bytes`)", "`send` raises `Overloaded`, `await ready()` waits")

# Outboxes
OUTBOX_BYTES_MAX = _limit("OUTBOX_BYTES_MAX", GIB, "what an outbox holds on its own disk (setting `outbox_bytes`)", "`OutboxFull`")
OUTBOX_TOPICS_MAX = _limit("OUTBOX_TOPICS_MAX", 1_000, "topics of which an outbox has records; one that has none any more makes room", "`OutboxFull`")
OUTBOX_BUFFER_BYTES = _limit("OUTBOX_BUFFER_BYTES", 32 * MIB, "records on their way to an outbox's disk", "`Overloaded`; `await ready()` waits")

# Groups
GROUP_BYTES_MAX = _limit("GROUP_BYTES_MAX", 64, "a group's name", "`UsageError`")
GROUP_PENDING_MAX = _limit("GROUP_PENDING_MAX", 16_384, "records of one partition that a group has handed out and that are not acknowledged", "no new ones are handed out; those that come back are")
GROUP_IN_FLIGHT_MAX = _limit("GROUP_IN_FLIGHT_MAX", 10_000, "records that one subscription of a group holds at one peer (setting `credit_records`)", "nothing more is pushed until some are settled")
GROUP_MEMBERS_MAX = _limit("GROUP_MEMBERS_MAX", 1_000, "members of one group in one partition", "`Overloaded`")
ORDERED_MEMBERS_MAX = _limit("ORDERED_MEMBERS_MAX", 128, "members of one ordered group and topic", "`Overloaded`")
GROUPS_PER_SLOT_MAX = _limit("GROUPS_PER_SLOT_MAX", 10_000, "groups of one slot, counted by partition", "`Overloaded`")
ACK_WAIT_MS_MAX = _limit("ACK_WAIT_MS_MAX", 12 * 3_600_000, "how long a record may be out before it is handed out again (setting `ack_wait`), and the longest delay of a `nack`", "`UsageError`")

GROUP_QUESTIONS_MAX = _limit("GROUP_QUESTIONS_MAX", 256, "questions about groups, and changes of them, that wait at one peer", "`Overloaded`")
SETTLE_RANGES_MAX = _limit("SETTLE_RANGES_MAX", 32_768, "ranges of records that are settled by one message", "`Overloaded` for the rest of them")
DEAD_LETTER_TOPICS_MAX = _limit("DEAD_LETTER_TOPICS_MAX", 64, "topics of dead letters of one topic: groups on it that have some", "`Overloaded` to who rejects; what was handed out `max_deliver` times waits, and is looked at once a minute")
GROUP_OPS_BYTES_MAX = _limit("GROUP_OPS_BYTES_MAX", 4 * MIB, "what is said of one group's records in one partition while its slot is handed over, or in one turn", "`Overloaded`")
GROUP_REASONS_MAX = _limit("GROUP_REASONS_MAX", 64, "different reasons of the records of one group and partition that are on their way to the dead letters", "further ones become `rejected`")
REASON_CHARS_MAX = _limit("REASON_CHARS_MAX", 256, "characters of the reason for which a record is rejected", "`UsageError`")

# Connections and messages
MESSAGE_BYTES_MAX = _limit("MESSAGE_BYTES_MAX", 6 * MIB, "one frame on a TCP socket", "the connection is closed")
FRAMES_MAX = _limit("FRAMES_MAX", 72, "frames of one message (a handshake head and up to 64 batches)", "the message is dropped and counted")
WHOLE_MESSAGE_BYTES_MAX = _limit("WHOLE_MESSAGE_BYTES_MAX", 24 * MIB, "all frames of one message from a client: PRODUCE_BYTES_MAX of batches, and room for their head", "the connection is closed, and counted as `too_large`")
UNFINISHED_BYTES_MAX = _limit("UNFINISHED_BYTES_MAX", 32 * MIB, "what has come of a client's connection since its last whole message", "the connection is closed, and counted as `cut_greedy`")
UNFINISHED_BYTES_TOTAL_MAX = _limit("UNFINISHED_BYTES_TOTAL_MAX", 64 * MIB, "the same of all connections of one socket of clients together, those that have not shown a key included", "the one with the most is closed, and counted as `cut_crowded`")
STRANGER_BYTES_MAX = _limit("STRANGER_BYTES_MAX", 64 * KIB, "what may come of a connection to the peers' listener before its first whole message", "the connection is closed, and counted as `cut_greedy`")
ASK_BYTES_MAX = _limit("ASK_BYTES_MAX", 64 * KIB, "an administrative request", "`RemoteProtocolError`")
HANDSHAKE_MS = _limit("HANDSHAKE_MS", 2_000, "time for a CURVE handshake", "the connection is closed")
SESSIONS_MAX = _limit("SESSIONS_MAX", 4_096, "connections with state on one peer, at each door (clients, peers)", "`Overloaded`")
SESSION_IDLE_MS = _limit("SESSION_IDLE_MS", 15_000, "silence after which a client's session is dropped", "the client says hello again")
SUBSCRIPTIONS_PER_SESSION_MAX = _limit("SUBSCRIPTIONS_PER_SESSION_MAX", 256, "subscriptions and watches of one connection", "`Overloaded`")
SUBSCRIPTIONS_PER_PEER_MAX = _limit("SUBSCRIPTIONS_PER_PEER_MAX", 10_000, "the same, of another peer's connection or this peer's own client", "`Overloaded`")
SESSIONS_PER_KEY_MAX = _limit("SESSIONS_PER_KEY_MAX", 512, "connections with state under one key", "`Overloaded`")
READERS_PER_SESSION_MAX = _limit("READERS_PER_SESSION_MAX", 20_000, "partitions one connection reads at one peer", "`Overloaded`")
CREDIT_BYTES_MAX = _limit("CREDIT_BYTES_MAX", 64 * MIB, "credit of one connection at one peer, over all its subscriptions", "the surplus is ignored")
FEED_SUBSCRIPTIONS_MAX = _limit("FEED_SUBSCRIPTIONS_MAX", 1_000, "subscriptions of one key on the feed", "the subscription is not approved, and counted")
UNREAD_BYTES_MAX = _limit("UNREAD_BYTES_MAX", 128 * MIB, "what all clients of one peer were sent on `requests` and have not taken", "the connection that holds up the most is closed, and counted as `cut_unread`")
FEED_BYTES_MAX = _limit("FEED_BYTES_MAX", 64 * MIB, "what waits for all plain subscribers of one peer, counted as if each message were as large as the largest of late; at least two messages for each", "further ones are dropped for who is behind")
FEED_QUEUE_MAX = _limit("FEED_QUEUE_MAX", 10_000, "messages waiting for one plain subscriber; fewer of large ones (`FEED_BYTES_MAX`)", "dropped for that subscriber (at most once; libzmq does not say how many)")
INGEST_BUFFER_BYTES = _limit("INGEST_BUFFER_BYTES", 16 * MIB, "plain publishes waiting to be stored", "PUB: dropped and counted; REQ: `Overloaded`")
RECEIPTS_WAITING_MAX = _limit("RECEIPTS_WAITING_MAX", 4_096, "batches of a peer that are stored, or on its disk, and wait to be told of: for a mirror, for `copies_min`", "`Overloaded`")
PENDING_BYTES_MAX = _limit("PENDING_BYTES_MAX", 64 * MIB, "batches accepted by a peer and not yet on disk", "`Overloaded`")

# Membership and the door
DATAGRAM_BYTES_MAX = _limit("DATAGRAM_BYTES_MAX", 1_400, "a gossip datagram, sealed", "dropped and counted")
REPLAY_WINDOW = _limit("REPLAY_WINDOW", 1_024, "datagrams of one sender that may arrive out of order", "older ones dropped and counted")
MEMBER_EVENTS_KEPT = _limit("MEMBER_EVENTS_KEPT", 4_096, "membership changes that a peer keeps for `meshq events`", "the oldest is forgotten; a reader that lacks it is told how many it missed (`EventsLost`)")
MEMBER_EVENT_READERS_MAX = _limit("MEMBER_EVENT_READERS_MAX", 256, "requests that wait for one peer's next membership change", "`Overloaded`")
ADDRESSES_MAX = _limit("ADDRESSES_MAX", 8, "addresses of one peer", "the rest is ignored")
INVITES_MAX = _limit("INVITES_MAX", 256, "open invitations of one peer", "`UsageError`")
DOOR_CALLERS_MAX = _limit("DOOR_CALLERS_MAX", 64, "joins under way at one door", "refused, try again")
DOOR_FRAME_BYTES_MAX = _limit("DOOR_FRAME_BYTES_MAX", 16 * KIB, "one frame at the door", "the connection is closed")

# Disk
STORE_BYTES_MAX = _limit("STORE_BYTES_MAX", 256 * GIB, "the store of one peer (setting `store_bytes_max`)", "`DiskFull`")
WITNESS_BYTES_MAX = _limit("WITNESS_BYTES_MAX", 4 * GIB, "the store of a witness (setting `witness_bytes_max`): records that some peer of their slot has not got yet", "it takes no more; publishing that needs it is refused with `DiskFull`")
DISKS_REMEMBERED_MAX = _limit("DISKS_REMEMBERED_MAX", 4_096, "disks of peers whose newest start is remembered", "the one that has been silent longest is forgotten")
DISK_RESERVE_BYTES = _limit("DISK_RESERVE_BYTES", 256 * MIB, "free disk kept for entries without payload (setting `disk_reserve_bytes`)", "`DiskFull`")
TRANSACTION_BYTES_MAX = _limit("TRANSACTION_BYTES_MAX", 32 * MIB, "payload of one group commit", "the rest waits for the next one")
ENTRY_BYTES_MAX = _limit("ENTRY_BYTES_MAX", BATCH_BYTES_MAX + 256 * KIB, "the body of one log entry, which goes to followers in one frame (a compacted batch is in it)", "`TooLarge`: it does not come into the log")
LOG_ENTRIES_KEPT = _limit("LOG_ENTRIES_KEPT", 4_096, "applied entries a slot's log keeps when nobody lacks them (payloads stay as long as the topic's retention says)", "older ones are trimmed")
LOG_ENTRIES_MAX = _limit("LOG_ENTRIES_MAX", 65_536, "applied entries a leader's log keeps for followers that lack them", "older ones are trimmed; who lacks them gets a snapshot")
LOG_BYTES_MAX = _limit("LOG_BYTES_MAX", 16 * MIB, "bytes of the applied entries a slot's log keeps, without payloads", "older ones are trimmed; who lacks them gets a snapshot")
REPLICA_MEMORY_BYTES = _limit("REPLICA_MEMORY_BYTES", 256 * KIB, "committed entries one slot keeps in memory, payloads included (64 MiB in all for 256 slots)", "older ones are read from disk for a follower that lacks them")

# Snapshots
SNAPSHOT_PIECE_BYTES = _limit("SNAPSHOT_PIECE_BYTES", 512 * KIB, "one piece of a snapshot, of which one is on its way to a follower at a time (a larger batch goes alone)", "the rest follows in the next piece")
SNAPSHOTS_SENT_MAX = _limit("SNAPSHOTS_SENT_MAX", 4, "snapshots a peer sends at a time (their state rows are in memory, some 20 MB each at worst)", "the others wait: asked for again twice a second")
MOVE_BYTES_S = _limit("MOVE_BYTES_S", 32 * MIB, "copies a peer sends to new homes of the slots it leads, a second (setting `move_bytes_s`)", "the rest follows later")
SNAPSHOT_PARTITIONS_MAX = _limit("SNAPSHOT_PARTITIONS_MAX", 1 << 20, "partitions of one slot that a snapshot can hold", "no snapshot is made, and counted (`snapshots_refused`)")
# fmt: on


def table() -> list[Limit]:
    return list(_TABLE)


def as_markdown() -> str:
    rows = "\n".join(f"| `{x.name}` | {_show(x)} | {x.what} | {x.answer} |" for x in _TABLE)
    head = "# Limits\n\nGenerated from `meshq/limits.py` by `make docs`.\n\n"
    return f"{head}| name | value | of what | when it is reached |\n|---|---|---|---|\n{rows}\n"


def _show(limit: Limit) -> str:
    if "BYTES" in limit.name:
        for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if limit.value >= unit and limit.value % unit == 0:
                return f"{limit.value // unit} {name}"
    return f"{limit.value:,}"
