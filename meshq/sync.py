"""The client's calls without `async`: `meshq.sync.connect(...)`, for programs that run no event loop."""

from meshq.client.sync import Mesh, connect
from meshq.client.sync_producer import PendingResult, Producer
from meshq.client.sync_subscription import (
    GroupRecord,
    GroupSubscription,
    OrderedRecord,
    OrderedSubscription,
    Subscription,
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
