"""Resolve and Watch: from names and patterns to topics, now and as they change."""

from __future__ import annotations

from dataclasses import dataclass

from meshq.errors import Forbidden, MeshqError, TopicExists, Unavailable, UnknownTopic
from meshq.ids import Session
from meshq.messages import Resolve, Resolved, TopicInfo, TopicsChanged, Unwatch, Watch
from meshq.peer.core.context import Context
from meshq.peer.core.registrar import Registrar
from meshq.peer.core.sessions import Watching
from meshq.registry.commands import CreateTopic
from meshq.security.authorization import Principal
from meshq.topics import check_pattern, check_topic, is_internal, matches

PAGE = 1_000  # topics in one message


@dataclass
class Naming:
    ctx: Context
    registrar: Registrar

    def on_resolve(self, session: Session, principal: Principal, message: Resolve) -> None:
        """Raises: Forbidden, UsageError, UnknownTopic."""
        name = check_topic(message.topic)
        may_create = message.create and principal.may_publish(name)
        if not may_create and not principal.may_publish(name) and not principal.may_consume(name):
            raise Forbidden(f"{principal.name!r} may neither publish to nor read {name!r}")
        info = self.ctx.registry.topic(name)
        if info is not None:
            self.ctx.send(session, Resolved(message.request, info))
            return
        if not may_create or not self.ctx.settings.auto_create or (is_internal(name) and not principal.admin):
            raise UnknownTopic(f"there is no topic {name!r}: make it with `meshq topic create {name}`")
        self._create(session, message.request, name)

    def _create(self, session: Session, request: int, name: str) -> None:
        def done(result: int | MeshqError) -> None:
            info = self.ctx.registry.topic(name)
            if info is not None:
                self.ctx.send(session, Resolved(request, info))
            elif isinstance(result, TopicExists):
                # Somebody else made it a moment ago and the news is still on its way: asking again finds it.
                self.ctx.fail(
                    session, request, Unavailable(f"topic {name!r} is being made", retry_after_ms=50)
                )
            elif isinstance(result, MeshqError):
                self.ctx.fail(session, request, result)
            else:
                self.ctx.fail(session, request, UnknownTopic(f"topic {name!r} was deleted as it was made"))

        settings = self.ctx.settings
        command = CreateTopic(name, self.ctx.random_id(), 1, settings.record_bytes_max)
        self.registrar.propose(command, done)

    def on_watch(self, session: Session, principal: Principal, message: Watch) -> None:
        """Raises: Forbidden, UsageError, Overloaded, Unavailable."""
        if message.prefixes:
            if not principal.admin:
                raise Forbidden("watching by prefix is for peers: use a pattern")
        elif not principal.may_watch(check_pattern(message.pattern)):
            raise Forbidden(
                f"{principal.name!r} may not subscribe to {message.pattern!r}: no capability covers it"
            )
        if self.ctx.registry.version < message.version:
            raise Unavailable("this peer has not heard of all those topics yet", retry_after_ms=50)
        state = self.ctx.sessions.states[session]
        state.check_subscription(message.request in state.watches)
        watching = Watching(message.pattern, tuple(message.prefixes))
        state.watches[message.request] = watching
        found = [self.ctx.registry.topic(n) for n in self._candidates(watching)]
        topics = [info for info in found if info is not None]
        pages = [topics[i : i + PAGE] for i in range(0, len(topics), PAGE)] or [[]]
        for number, page in enumerate(pages):
            complete = number == len(pages) - 1
            self.ctx.send(session, TopicsChanged(message.request, self.ctx.mesh_ms, page, [], complete))

    def _candidates(self, watching: Watching) -> list[str]:
        fixed = watching.pattern.split("*")[0].split("#")[0]
        if not watching.prefixes and fixed == watching.pattern:
            return [watching.pattern] if self.ctx.registry.topic(watching.pattern) else []
        found: list[str] = []
        for prefix in watching.prefixes or (fixed,):
            for name in self.ctx.registry.names(from_name=prefix):
                if not name.startswith(prefix.rstrip(".")):
                    break
                if _means(watching, name):
                    found.append(name)
        return list(dict.fromkeys(found))

    def on_unwatch(self, session: Session, message: Unwatch) -> None:
        self.ctx.sessions.states[session].watches.pop(message.request, None)

    def on_topic(self, info: TopicInfo, *, gone: bool) -> None:
        """Tell everyone who watches it."""
        for session, state in self.ctx.sessions.states.items():
            for request, watching in state.watches.items():
                if _means(watching, info.name):
                    topics, ids = ([], [info.topic_id]) if gone else ([info], [])
                    self.ctx.send(session, TopicsChanged(request, self.ctx.mesh_ms, topics, ids))


def _means(watching: Watching, name: str) -> bool:
    if watching.prefixes:
        return name.startswith(watching.prefixes)
    return matches(watching.pattern, name)
