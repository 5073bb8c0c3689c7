"""meshq: a durable message queue with no broker to run.

Every host runs a peer; the peers find each other, and together they are the queue.

    async with meshq.connect(credentials="app.meshq") as mesh:          # or data="~/.meshq" on a peer's host
        receipt = await mesh.publish("orders.eu", b"...", key=b"42")    # on disk when this returns
        async with mesh.producer("orders.eu", compression="zstd") as out:
            future = out.send(b"...")                                   # batches; await it for the receipt
        async for record in mesh.subscribe("orders.#", start="earliest"):
            print(record.topic, record.offset, record.value)

    async with meshq.Peer(data="~/.meshq") as peer:                     # a whole peer in this program
        await peer.publish("orders.eu", b"...")

`meshq.sync` has the same names without `async`. Errors are a tree (`meshq.errors`); any error of a publish
but `OutcomeUnknown` means that the record was certainly not published.
"""

import importlib
from typing import TYPE_CHECKING, Any

from meshq.client.connect import connect
from meshq.client.group import GroupRecord, GroupSubscription
from meshq.client.groups import GroupInfo, GroupMember, GroupPartition, GroupReset, Redriven
from meshq.client.mesh import Mesh
from meshq.client.ordered_group import OrderedRecord, OrderedSubscription
from meshq.client.producer import Producer
from meshq.client.records import Receipt, Record
from meshq.client.subscription import Subscription
from meshq.errors import (
    DiskFull,
    Fenced,
    Forbidden,
    InternalError,
    LeaseLost,
    MeshqError,
    OutboxFull,
    OutcomeUnknown,
    OutOfOrderSequence,
    Overloaded,
    RecordsExpired,
    RecordsLost,
    Refused,
    RegistryUnavailable,
    RemoteProtocolError,
    SecurityError,
    SequenceConflict,
    StoreCorrupt,
    StoreError,
    TooLarge,
    TopicExists,
    TopicGone,
    Unavailable,
    UnknownGroup,
    UnknownProducer,
    UnknownTopic,
    UsageError,
)

if TYPE_CHECKING:
    from meshq.peer.embedded import Peer

__version__ = "0.1.0"

__all__ = [
    "DiskFull",
    "Fenced",
    "Forbidden",
    "GroupInfo",
    "GroupMember",
    "GroupPartition",
    "GroupRecord",
    "GroupReset",
    "GroupSubscription",
    "InternalError",
    "LeaseLost",
    "Mesh",
    "MeshqError",
    "OrderedRecord",
    "OrderedSubscription",
    "OutOfOrderSequence",
    "OutboxFull",
    "OutcomeUnknown",
    "Overloaded",
    "Peer",
    "Producer",
    "Receipt",
    "Record",
    "RecordsExpired",
    "RecordsLost",
    "Redriven",
    "Refused",
    "RegistryUnavailable",
    "RemoteProtocolError",
    "SecurityError",
    "SequenceConflict",
    "StoreCorrupt",
    "StoreError",
    "Subscription",
    "TooLarge",
    "TopicExists",
    "TopicGone",
    "Unavailable",
    "UnknownGroup",
    "UnknownProducer",
    "UnknownTopic",
    "UsageError",
    "connect",
]


def __getattr__(name: str) -> Any:
    # A peer brings the store and gossip with it: a client that only connects does not load them.
    if name == "Peer":
        from meshq.peer.embedded import Peer

        return Peer
    if name == "sync":
        return importlib.import_module("meshq.sync")
    raise AttributeError(f"module 'meshq' has no attribute {name!r}")
