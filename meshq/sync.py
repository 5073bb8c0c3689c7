"""The client's calls without `async`: `meshq.sync.connect(...)`, for programs that run no event loop."""

from meshq.client.sync import Mesh, PendingResult, Producer, Subscription, connect

__all__ = ["Mesh", "PendingResult", "Producer", "Subscription", "connect"]
