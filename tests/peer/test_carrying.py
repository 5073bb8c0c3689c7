"""What the core may order has somebody who does it."""

from __future__ import annotations

from typing import get_args
from unittest.mock import MagicMock

from meshq.peer.carrying import carriers
from meshq.peer.core.events import Effect


def test_every_kind_of_effect_is_carried_out() -> None:
    assert set(carriers(MagicMock())) == set(get_args(Effect))
