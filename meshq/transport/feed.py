"""Where plain subscribers listen: a CURVE XPUB that approves every subscription by hand.

What holds for libzmq 4.3.5 (`src/xpub.cpp`), found by trying and reading; the tests repeat it:

- With XPUB_MANUAL every (un)subscription is handed to us, repeated ones too (so XPUB_VERBOSER changes
  nothing), and only what we set with SUBSCRIBE before the next recv is delivered. Each comes with its
  connection's key and descriptor.
- A closed connection is reported as one unsubscription for each prefix it had *asked* for, without key or
  descriptor. So these say "somebody left", not who. We ask the kernel instead: a connection is known by its
  descriptor and that socket's inode, which is not used twice, and whatever is no longer there has left
  (`_sweep`).
- libzmq remembers also what we do not approve, so a bound on approvals alone bounds nothing: a key that
  asks for more than twice its limit has its connection cut.
- A message that is no subscription has no place in libzmq's queue of connections but takes one from it:
  until that queue has run empty, SUBSCRIBE would act on *another* connection than the one that asked. While
  that may be, nothing is approved, and who asked meanwhile is cut, to connect and subscribe again (libzmq
  clients do so by themselves); the sender is cut first.

What a slow subscriber has no room for is dropped for it alone (XPUB_NODROP off); libzmq does not say how
much. Its queues are bounded in messages, so how many is set by how large these are and how many subscribers
there are (`_make_room`); libzmq applies that to connections that exist as well.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import zmq

from meshq.batch import Buffer
from meshq.limits import FEED_BYTES_MAX, FEED_QUEUE_MAX, FEED_SUBSCRIPTIONS_MAX
from meshq.transport.allowance import Allowance, bind_watched
from meshq.transport.context import CLIENTS_THREAD, harden_server
from meshq.transport.drain import Drain, guarded, key_of, send
from meshq.transport.tcp import Connection, connection_of, cut, is_open, local_port

PREFIX_BYTES_MAX: Final = 300  # of a subscription; it is not approved, and counted
SUBSCRIPTION_BYTES_MAX: Final = 4 * 1024  # one frame of a subscriber; its handshake commands must fit too
RECEIVE_QUEUE_MAX: Final = 100  # keeps libzmq's own reading loop short under a flood of subscriptions
ROOM_EVERY: Final = 1_000  # messages after which a queue may be made longer again
MESSAGE_OVERHEAD_BYTES: Final = 200  # what a message costs libzmq besides its bytes, about
SWEEP_AGAIN_S: Final = (
    0.5  # libzmq reports a connection's end some microseconds before it closes the descriptor
)


@dataclass(slots=True)
class _Subscriber:
    key: bytes
    asked: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)  # prefix -> what was approved for it
    approved: Counter[bytes] = field(default_factory=Counter)  # how many of `asked` need each
    cut: bool = False


class FeedServer:
    """Publishes to subscribers; `on_subscribe(key, prefix)` says which prefixes to approve for one asked for.

    `counters`: denied, over_limit, prefix_too_long, not_a_subscription, doubtful, no_key, cut, cut_greedy,
    on_*_failed.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        endpoints: Sequence[str],
        public_key: bytes,
        secret_key: bytes,
        domain: str,
        on_subscribe: Callable[[bytes, bytes], Sequence[bytes]],
        on_interest_changed: Callable[[], None] | None = None,
        affinity: int = CLIENTS_THREAD,
        hwm: int = FEED_QUEUE_MAX,
        bytes_max: int = FEED_BYTES_MAX,
        subscriptions_max: int = FEED_SUBSCRIPTIONS_MAX,
        allowance: Allowance | None = None,
    ) -> None:
        """Raises: UsageError when an endpoint cannot be bound."""
        self.counters: Counter[str] = Counter()
        self._on_subscribe = on_subscribe
        self._on_interest_changed = on_interest_changed
        self._subscriptions_max = subscriptions_max
        self._bytes_max, self._hwm_max, self._hwm = bytes_max, hwm, hwm
        self._largest = self._until_room = 0
        self._subscribers: dict[tuple[Connection, bytes], _Subscriber] = {}
        self._asked_by_key: Counter[bytes] = Counter()
        self._approved_by_key: Counter[bytes] = Counter()
        self._interests: Counter[bytes] = Counter()  # prefix -> subscribers that have it
        self._changed = self._left = self._doubtful = self._closed = False
        self._sweep_again: asyncio.TimerHandle | None = None
        self._socket = context.socket(zmq.XPUB)
        harden_server(
            self._socket,
            public_key=public_key,
            secret_key=secret_key,
            domain=domain,
            affinity=affinity,
            message_bytes_max=SUBSCRIPTION_BYTES_MAX,
        )
        self._socket.setsockopt(zmq.XPUB_MANUAL, 1)
        self._socket.setsockopt(zmq.SNDHWM, hwm)
        self._socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_MAX)
        self.bound, self._watch = bind_watched(context, self._socket, endpoints, allowance, self.counters)
        self._ports = {int(endpoint.rpartition(":")[2]) for endpoint in self.bound}
        self._drain = Drain(self._socket, self._read, after=self._end_turn)
        if self._watch is not None:
            self._watch.read = self._drain.poke

    def interests(self) -> set[bytes]:
        """The prefixes somebody is approved for now. Those of a broken connection go within about half a
        second."""
        return set(self._interests)

    def subscribers(self) -> set[bytes]:
        """The keys whose connections have asked for anything."""
        return {key for _, key in self._subscribers}

    def publish(self, frames: Sequence[Buffer]) -> None:
        """To everybody approved for a prefix of the first frame; at most once, never waits."""
        if not self._closed:
            self._make_room(sum(map(len, frames)) + MESSAGE_OVERHEAD_BYTES)
            send(self._socket, frames)
            self._drain.sent()

    def _make_room(self, size: int) -> None:
        """Shorten the queues when a message is larger than they were made for; lengthen them later."""
        self._largest = max(self._largest, size)
        self._until_room -= 1
        if self._until_room > 0 and self._hwm * size * len(self._subscribers) <= self._bytes_max:
            return
        each = self._bytes_max // max(len(self._subscribers), 1)
        hwm = min(max(each // self._largest, 2), self._hwm_max)
        if hwm != self._hwm:
            self._hwm = hwm
            self._socket.setsockopt(zmq.SNDHWM, hwm)
        if self._until_room <= 0:
            self._largest, self._until_room = size, ROOM_EVERY

    def disconnect(self, key: bytes) -> int:
        """Cut the connections under this key that have subscribed (say, it was revoked); returns how many."""
        found = [(where, s) for (where, k), s in self._subscribers.items() if k == key]
        for where, subscriber in found:
            self._cut(where, subscriber)
        return len(found)

    def close(self) -> None:
        """Cut every connection; no callback afterwards. Idempotent."""
        self._closed = True
        if self._sweep_again is not None:
            self._sweep_again.cancel()
            self._sweep_again = None
        if self._watch is not None:
            self._watch.close()
        self._drain.close()
        self._socket.close(linger=0)

    def _read(self) -> bool:
        # Frame by frame: libzmq takes every frame that looks like a subscription for one, wherever it stands.
        try:
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._doubtful = False  # libzmq's two queues are empty, so they agree again
            if self._watch is not None:
                self._watch.on_empty()
            return False
        if self._watch is not None:
            self._watch.on_message(frame)
        data, key = frame.bytes, key_of(frame)
        subscription = data[:1] in (b"\0", b"\1")
        if not subscription:
            self._doubtful = True
            self.counters["not_a_subscription"] += 1
        where = connection_of(frame) if key is not None else None
        if key is None:
            self._on_nameless(data)
        elif where is not None and subscription:
            self._on_asked(where, key, prefix=data[1:], wanted=data[0] == 1)
        elif where is not None:
            self._cut(where, self._subscribers.get((where, key)))
        return True

    def _on_nameless(self, data: bytes) -> None:
        if data[:1] == b"\0":
            self._left = True
        else:
            self.counters["no_key"] += 1

    def _on_asked(self, where: Connection, key: bytes, *, prefix: bytes, wanted: bool) -> None:
        subscriber = self._subscribers.get((where, key))
        if subscriber is None:
            if local_port(where) not in self._ports:
                return  # it closed before we read this, and its descriptor is somebody else's by now
            subscriber = self._subscribers[where, key] = _Subscriber(key)
        if subscriber.cut:
            return
        if self._doubtful:
            self.counters["doubtful"] += 1
            self._cut(where, subscriber)
        elif not wanted:
            self._unsubscribe(subscriber, prefix)
        elif prefix not in subscriber.asked:
            if self._asked_by_key[key] >= 2 * self._subscriptions_max:
                self._cut(where, subscriber)
            else:
                self._subscribe(subscriber, prefix)

    def _subscribe(self, subscriber: _Subscriber, prefix: bytes) -> None:
        approved = self._judge(subscriber, prefix)
        if self._closed:
            return  # by `on_subscribe`
        subscriber.asked[prefix] = approved
        self._asked_by_key[subscriber.key] += 1
        for one in approved:
            if not subscriber.approved[one]:
                self._socket.setsockopt(zmq.SUBSCRIBE, one)
                self._approved_by_key[subscriber.key] += 1
                self._changed |= not self._interests[one]
                self._interests[one] += 1
            subscriber.approved[one] += 1

    def _judge(self, subscriber: _Subscriber, prefix: bytes) -> tuple[bytes, ...]:
        if len(prefix) > PREFIX_BYTES_MAX:
            self.counters["prefix_too_long"] += 1
            return ()
        key = subscriber.key
        asked: Sequence[bytes] | None = guarded(
            self.counters, "on_subscribe_failed", self._on_subscribe, key, prefix
        )
        approved = tuple(dict.fromkeys(asked or ()))
        if not approved:
            self.counters["denied"] += 1
        elif (
            self._approved_by_key[key] + sum(p not in subscriber.approved for p in approved)
            > self._subscriptions_max
        ):
            self.counters["over_limit"] += 1
            return ()
        return approved

    def _unsubscribe(self, subscriber: _Subscriber, prefix: bytes) -> None:
        for one in self._forget(subscriber, prefix):
            self._socket.setsockopt(zmq.UNSUBSCRIBE, one)

    def _forget(self, subscriber: _Subscriber, prefix: bytes) -> list[bytes]:
        """Take one asked-for prefix from the books; returns the approved ones that nothing else of this
        subscriber needs."""
        if prefix not in subscriber.asked:
            return []
        gone = []
        _count_down(self._asked_by_key, subscriber.key)
        for one in subscriber.asked.pop(prefix):
            if _count_down(subscriber.approved, one):
                gone.append(one)
                _count_down(self._approved_by_key, subscriber.key)
                self._changed |= _count_down(self._interests, one)
        return gone

    def _cut(self, where: Connection, subscriber: _Subscriber | None) -> None:
        """Close a connection from here; its books are closed when the sweep finds it gone."""
        if subscriber is not None:
            subscriber.cut = True
        self.counters["cut"] += 1
        if local_port(where) in self._ports:
            cut(where)
        self._sweep_soon()

    def _end_turn(self) -> None:
        if self._left:
            self._left = False
            self._sweep()
            self._sweep_soon()
        if self._changed:
            self._changed = False
            if self._on_interest_changed is not None:
                guarded(self.counters, "on_interest_changed_failed", self._on_interest_changed)

    def _sweep_soon(self) -> None:
        if self._sweep_again is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._sweep_again = loop.call_later(SWEEP_AGAIN_S, self._on_sweep_again)

    def _on_sweep_again(self) -> None:
        self._sweep_again = None
        self._sweep()
        self._end_turn()

    def _sweep(self) -> None:
        for where, key in [name for name in self._subscribers if not is_open(name[0])]:
            subscriber = self._subscribers.pop((where, key))
            for prefix in list(subscriber.asked):
                self._forget(subscriber, prefix)


def _count_down(counter: Counter[bytes], key: bytes) -> bool:
    """Take one away; True when that was the last."""
    counter[key] -= 1
    if counter[key] > 0:
        return False
    del counter[key]
    return True
