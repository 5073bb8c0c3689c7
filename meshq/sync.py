"""The client's calls without `async`: `meshq.sync.connect(...)`, for programs that run no event loop."""

from meshq.client.sync import (
    GroupRecord,
    GroupSubscription,
    Mesh,
    OrderedRecord,
    OrderedSubscription,
    PendingResult,
    Producer,
    Subscription,
    connect,
)

__all__ = [
    "GroupRecord",
    "GroupSubscription",
    "Mesh",
    "OrderedRecord",
    "OrderedSubscription",
    "PendingResult",
    "Producer",
    "Subscription",
    "connect",
]
