"""What holds whatever the network does: only owners raise incarnations, and all lists become the same."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from meshq.gossip import wire
from meshq.gossip.machine import Membership
from meshq.gossip.wire import Claim, Digest, Gossip, Signed
from meshq.gossip.words import AddressesChanged, Tick
from tests.gossip.scripts import claim, hear, signed
from tests.gossip.simulation import World, address_of, member, number, peer_id

Order = tuple[int, int]


# ------------------------------------------------------------------------------- many machines, any network
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(2, 6),
    loss=st.floats(0, 0.6),
    duplicates=st.floats(0, 1),
    delay_s=st.floats(0, 1.0),
    faults=st.lists(
        st.tuples(
            st.sampled_from(["down", "restart", "split", "one way", "pause", "move"]), st.integers(1, 6)
        ),
        max_size=5,
    ),
    stays_down=st.integers(2, 6),
)
def test_once_faults_stop_all_lists_are_the_same(
    seed: int,
    size: int,
    loss: float,
    duplicates: float,
    delay_s: float,
    faults: list[tuple[str, int]],
    stays_down: int,
) -> None:
    world = World(size, seed=seed, loss=loss, duplicates=duplicates, delay_s=delay_s, warm=seed % 2 == 0)
    for what, which in faults:
        n = (which - 1) % size + 1
        match what:
            case "down":
                world.down.add(n)
            case "restart":
                world.start(n)
            case "split":
                world.cut = lambda a, b, n=n: (a <= n) != (b <= n)
            case "one way":
                world.cut = lambda a, b, n=n: a == n
            case "pause":
                world.pause(n, 2.0)
            case "move" if n not in world.down:
                world.tell(n, AddressesChanged((address_of(n, host=len(world.log) % 200 + 1), address_of(n))))
        _run_watched(world, world.rng.uniform(0, 4))
    world.loss, world.duplicates, world.delay_s = 0.0, 0.0, 0.001
    world.cut = lambda a, b: False
    for n in sorted(world.down - {stays_down}):
        world.start(n)
    _run_watched(world, 120, world.converged)
    assert world.converged()
    _run_watched(world, 10)
    assert world.converged()


def _run_watched(world: World, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """What is held of anybody never goes back, nor above what its owner signed; looked at twice a second."""
    end = world.now + seconds
    while world.now < end and not until():
        starts = dict(world.boots)
        before = {(n, number(x.peer)): (x.boot_epoch, x.version) for n, x in _held(world)}
        own = {n: m.own.order for n, m in world.peers.items()}
        world.run(min(0.5, end - world.now))
        for n, x in _held(world):
            order = (x.boot_epoch, x.version)
            assert order <= world.peers[number(x.peer)].own.order
            if world.boots[n] == starts[n]:
                assert order >= before[n, number(x.peer)]
        for n, m in world.peers.items():
            assert m.own.order >= own[n]


def _held(world: World):  # type: ignore[no-untyped-def]
    return [(n, x) for n, m in world.peers.items() for x in m.members()]


# ---------------------------------------------------------------------------- one machine, any order of news
BOOTS, VERSIONS, OTHERS = (1, 2), (1, 2, 3, 4), (2, 3, 4)

RECORDS = st.builds(
    signed,
    st.sampled_from(OTHERS),
    boot=st.sampled_from(BOOTS),
    version=st.sampled_from(VERSIONS),
    left=st.booleans(),
)
FORGED = st.builds(
    lambda n, boot, by: signed(n, boot=boot, version=9, by=by),
    st.sampled_from(OTHERS),
    st.sampled_from(BOOTS),
    st.sampled_from((1, 5)),
)
CLAIMS = st.builds(
    claim,
    st.sampled_from((1, *OTHERS)),
    st.sampled_from((1, *OTHERS, 5)),
    dead=st.booleans(),
    boot=st.sampled_from(BOOTS),
    version=st.sampled_from((*VERSIONS, 2**62)),
)
DIGESTS = st.builds(
    Digest, st.sampled_from([peer_id(n) for n in (1, *OTHERS, 5)]), st.integers(0, 3), st.integers(0, 9)
)
HEARD = st.lists(
    st.tuples(
        st.sampled_from(OTHERS), st.booleans(), st.lists(RECORDS | FORGED | CLAIMS | DIGESTS, max_size=4)
    ),
    max_size=25,
)


@settings(max_examples=300)
@given(HEARD)
def test_whatever_is_heard_an_incarnation_never_goes_back_and_only_its_owner_raises_it(
    heard: list[tuple[int, bool, list[object]]],
) -> None:
    m = member(1, registered=range(1, 5))
    for step, (sender, hearsay, items) in enumerate(heard):
        before, own = _orders(m), m.own.order
        accused = any(isinstance(x, Claim) and x.peer == m.me and x.order >= own for x in items)
        _hear(m, sender, hearsay, items, step * 0.05)
        m.handle(Tick(), now=step * 0.05)
        after = _orders(m)
        assert all(after[p] >= before[p] for p in before)
        assert {o for o in after.values() if o != (0, 0)} <= {(b, v) for b in BOOTS for v in VERSIONS}
        steps = m.own.version - own[1]
        assert m.own.boot_epoch == own[0]
        assert 0 <= steps <= (len(items) if accused else 0)


@settings(max_examples=200)
@given(st.data())
def test_records_in_any_order_any_number_of_times_leave_the_same_ones(data: st.DataObject) -> None:
    records = data.draw(st.lists(RECORDS, min_size=1, max_size=8))
    newest = _newest(records)
    for _ in range(2):
        m = member(1, registered=range(1, 5))
        for x in [
            *data.draw(st.permutations(records)),
            *data.draw(st.lists(st.sampled_from(records), max_size=4)),
        ]:
            hear(m, 2, Gossip(hearsay=data.draw(st.booleans())), records=[x])
        assert {p: o for p, o in _orders(m).items() if o != (0, 0)} == newest


def _newest(records: list[Signed]) -> dict[int, Order]:
    found: dict[int, Order] = {}
    for x in map(wire.read_record, records):
        found[number(x.peer)] = max(found.get(number(x.peer), (0, 0)), x.order)
    return found


def _orders(m: Membership) -> dict[int, Order]:
    return {number(x.peer): (x.boot_epoch, x.version) for x in m.members()}


def _hear(m: Membership, sender: int, hearsay: bool, items: list[object], now: float) -> None:
    hear(
        m,
        sender,
        Gossip(hearsay=hearsay),
        now=now,
        records=[x for x in items if isinstance(x, Signed)],
        claims=[x for x in items if isinstance(x, Claim)],
        digests=[x for x in items if isinstance(x, Digest)],
    )
