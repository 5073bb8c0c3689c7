"""What follows from a changed registry: who is let in, what is told to whom, and what is deleted.

A deleted topic goes from every slot led here that holds some of it. A peer that did not lead a slot when its
topic was deleted looks for such leavings when it begins to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from meshq.errors import TopicGone
from meshq.ids import TopicId
from meshq.registry.facts import Change, ClientsChanged, LevelRaised, PeersChanged, TopicChanged, TopicRemoved

if TYPE_CHECKING:
    from meshq.peer.core.core import PeerCore


@dataclass(slots=True)
class Changes:
    core: PeerCore
    look_for_deleted: bool = True  # of slots led here

    def tick(self) -> None:
        if self.look_for_deleted:
            self._drop_deleted()

    def on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            match change:
                case PeersChanged():
                    self.core.ctx.forget_principals()
                    self.core.placing.on_peers_changed()
                    self.core.tell_peers()
                    self.core.whereabouts.changed = True
                case ClientsChanged():
                    self.core.ctx.forget_principals()
                    self.core.ctx.recheck_sessions()
                case TopicChanged():
                    self.core.naming.on_topic(change.info, gone=False)
                    self.core.retaining.on_topic(change.info)
                    self.core.compacting.on_topic(change.info)
                case LevelRaised():
                    self.core.declared.on_level()
                case TopicRemoved():
                    self._on_topic_removed(change)
                case _:
                    assert_never(change)

    def _on_topic_removed(self, change: TopicRemoved) -> None:
        topic_id = TopicId(change.info.topic_id)
        self.core.naming.on_topic(change.info, gone=True)
        if not self.core.slots.drop_topic(topic_id):
            self.look_for_deleted = True
        self.core.consuming.on_topic_gone(topic_id, change.info.name)
        self.core.retaining.on_topic_gone(topic_id)
        self.core.compacting.on_topic_gone(topic_id)
        for partition in self.core.ctx.deliveries.readers_of(topic_id):
            self.core.reading.on_partition_gone(
                partition, TopicGone(f"topic {change.info.name!r} was deleted")
            )

    def _drop_deleted(self) -> None:
        """Drop, of slots led here, what was deleted while somebody else led them or nobody did. Only with the
        whole registry at hand: a copy that is behind has not heard of the newest topics and one that was lost
        knows none, so nothing is deleted on its word.
        """
        if not self.core.registrar.is_level:
            self.core.registrar.seek_level()
            return
        self.look_for_deleted = False
        for topic_id in sorted(self.core.slots.topics_held()):
            is_gone = self.core.ctx.registry.version > 0 and self.core.ctx.topic(topic_id) is None
            if is_gone and not self.core.slots.drop_topic(topic_id):
                self.look_for_deleted = True  # in the next tick, if it is led here then
