"""The client without `async`: the same names, for programs that have no event loop.

The loop runs on a daemon thread of its own; calls hand their work over and wait. Every wait has a deadline,
and Ctrl-C ends it. `sync_producer` and `sync_subscription` hand over many records at a time, so that per
record no thread is woken.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any

from meshq.batch import Buffer
from meshq.client import connect as asynchronous
from meshq.client.checking import Acks, Headers, check_seconds
from meshq.client.group import GroupSubscription as AsyncGroupSubscription
from meshq.client.groups import GroupInfo, GroupPartition, GroupReset, Redriven, To
from meshq.client.loop_thread import GRACE_S, LoopThread
from meshq.client.mesh import Mesh as AsyncMesh
from meshq.client.ordered_group import OrderedSubscription as AsyncOrderedSubscription
from meshq.client.records import Receipt
from meshq.client.sync_outbox import Outbox, without_async
from meshq.client.sync_producer import Producer
from meshq.client.sync_subscription import (
    GroupSubscription,
    OrderedSubscription,
    Subscription,
)
from meshq.errors import MeshqError
from meshq.limits import PRODUCER_BUFFER_BYTES
from meshq.messages import TopicInfo


def connect(
    credentials: asynchronous.CredentialsSource | None = None,
    *,
    data: str | Path | None = None,
    name: str = "",
    timeout: float = 10.0,
    **options: Any,
) -> Mesh:
    """A connected Mesh; use it with `with`, or `close()` it. Options and errors as the asynchronous
    `connect`'s.
    """
    connecting = asynchronous.connect(credentials, data=data, name=name, timeout=timeout, **options)

    async def make() -> AsyncMesh:
        return await connecting

    return _start(make, timeout)


def _start(make: Callable[[], Coroutine[Any, Any, AsyncMesh]], timeout: float) -> Mesh:
    thread = LoopThread()
    try:
        return Mesh(thread, thread.call(make(), timeout))
    except BaseException:
        thread.stop()
        raise


class Mesh:
    """As the asynchronous one. Its calls may come from any thread but the loop's own."""

    def __init__(self, thread: LoopThread, mesh: AsyncMesh) -> None:
        self._thread = thread
        self._mesh = mesh
        self._producers: list[Producer] = []  # as the application makes and keeps them

    def publish(
        self,
        topic: str,
        value: Buffer,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
        acks: Acks = "quorum",
        timeout: float = 30.0,
    ) -> Receipt:
        check_seconds(timeout, "timeout")
        call = self._mesh.publish(topic, value, key=key, headers=headers, acks=acks, timeout=timeout)
        return without_async(self._thread, self._thread.call(call, timeout, unknown=True))

    @property
    def outbox(self) -> Outbox | None:
        """What `publish` and every producer hand their records to, if it was asked for."""
        outbox = self._mesh.outbox
        return None if outbox is None else Outbox(self._thread, outbox)

    def producer(self, topic: str, **options: Any) -> Producer:
        """Options as the asynchronous one's."""
        timeout = options.get("timeout", 30.0)
        buffer_bytes = options.get("buffer_bytes", PRODUCER_BUFFER_BYTES)
        made = self._thread.run(lambda: self._mesh.producer(topic, **options), GRACE_S)
        producer = Producer(self._thread, made, timeout, buffer_bytes)
        self._producers = [p for p in self._producers if not p.is_done]
        self._producers.append(producer)
        return producer

    def subscribe(self, pattern: str, **options: Any) -> Subscription:
        """Options as the asynchronous one's."""
        made = self._thread.run(lambda: self._mesh.subscribe(pattern, **options), GRACE_S)
        kind: type[Subscription] = Subscription
        if isinstance(made, AsyncGroupSubscription):
            kind = GroupSubscription
        elif isinstance(made, AsyncOrderedSubscription):
            kind = OrderedSubscription
        return kind(self._thread, made)

    def ask(self, what: str, args: dict[str, Any] | None = None, *, timeout: float = 30.0) -> Any:
        check_seconds(timeout, "timeout")
        return self._thread.call(self._mesh.ask(what, args, timeout=timeout), timeout, unknown=True)

    def topics(self, pattern: str = "#", *, timeout: float = 30.0) -> list[TopicInfo]:
        check_seconds(timeout, "timeout")
        return self._thread.call(self._mesh.topics(pattern, timeout=timeout), timeout)

    def groups(self, pattern: str = "#", *, timeout: float = 30.0) -> list[GroupInfo]:
        return self._thread.call(self._mesh.groups(pattern, timeout=timeout), timeout)

    def group_show(self, topic: str, group: str, *, timeout: float = 30.0) -> list[GroupPartition]:
        return self._thread.call(self._mesh.group_show(topic, group, timeout=timeout), timeout)

    def group_reset(
        self, topic: str, group: str, to: To, *, dry_run: bool = False, timeout: float = 30.0
    ) -> list[GroupReset]:
        call = self._mesh.group_reset(topic, group, to, dry_run=dry_run, timeout=timeout)
        return self._thread.call(call, timeout, unknown=True)

    def group_redrive(
        self,
        topic: str,
        group: str,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        timeout: float = 30.0,
    ) -> Redriven:
        call = self._mesh.group_redrive(topic, group, limit=limit, dry_run=dry_run, timeout=timeout)
        return self._thread.call(call, timeout, unknown=True)

    def group_delete(self, topic: str, group: str, *, timeout: float = 30.0) -> None:
        call = self._mesh.group_delete(topic, group, timeout=timeout)
        self._thread.call(call, timeout, unknown=True)

    def close(self, timeout: float = 10.0) -> None:
        """As the asynchronous one: what producers took is sent, and what failed untold is raised."""
        if not self._thread.is_running:
            return
        for producer in self._producers:
            producer.refuse_more()
        try:
            self._thread.call(self._close(timeout), timeout, unknown=True)
        finally:
            self._thread.stop()

    async def _close(self, timeout: float) -> None:
        for producer in self._producers:
            producer.hand_over()
        await self._mesh.close(timeout)
        for producer in self._producers:
            producer.raise_refusals()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Somebody who pressed Ctrl-C does not want to wait for what can't be sent.
            self.close(1.0 if isinstance(error, KeyboardInterrupt) else 10.0)
        except MeshqError as e:
            if error is None:
                raise
            error.add_note(f"closing failed too: {e}")
