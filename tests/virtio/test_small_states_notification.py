"""No notification is lost and no word is seen too early, in any interleaving (2.7.7, 2.7.10, 2.7.13.4.1): a proof.

`virtio.interleavings` runs the step functions of both halves on rings of 1, 2 and 4 entries in every order that two
cores allow. Each proof is a search that ends with all states seen and none of them wrong; and each fence, check and
order that it leans on is taken out once, and the search then finds a state that is wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from virtblk.virtio import virtio_ring_split as driver_half
from virtblk.virtio import vringh_split as device_half
from virtblk.virtio.virtio_ring_split import VRING_DTYPE, VringVirtqueue
from virtblk.virtio.vringh_split import VRINGH_DTYPE, Vringh
from virtio.interleavings import PSO, TSO, Failure, Model, bind
from virtio.wrong import need_event_one_early, need_event_one_late, need_event_without_wrap

#: What runs is the kernels' Python, compiled or not: once is enough.
pytestmark = pytest.mark.once

DESC, AVAIL, USED, DATA = 0x1000, 0x2000, 0x3000, 0x4000
KICK, CALL = "kick", "call"
Access = Callable[..., int]


class Rings:
    """An empty ring of `num` at index `base`, as both halves find it. Private tables are lists, copied for each run."""

    def __init__(
        self, num: int, base: int, event_idx: bool, replaced: Mapping[str, Any] | None = None, ahead: int = 0
    ) -> None:
        self.replaced = replaced or {}
        self.memory: dict[int, int] = {}
        state = dict.fromkeys(VRING_DTYPE.names or (), 0)
        state |= {"desc": DESC, "avail": AVAIL, "used": USED, "num": num, "event_idx": int(event_idx)}
        self._vq = VringVirtqueue([state], [0] * num, [0] * num, [0] * num)  # type: ignore[arg-type]
        f = bind(driver_half, self._direct, {})
        f.virtqueue_init(self._vq, base)
        for token in range(ahead):
            assert add(f, self._vq, token) == 0
        state = dict.fromkeys(VRINGH_DTYPE.names or (), 0)
        state |= {"desc": DESC, "avail": AVAIL, "used": USED, "num": num, "event_idx": int(event_idx)}
        self._vr = Vringh([state], [0] * 8, [0] * 8)  # type: ignore[arg-type]
        bind(device_half, self._direct, {}).vringh_init(self._vr, base)

    def _direct(self, kind: str, address: int = 0, value: int = 0) -> int:
        if kind in ("store", "release"):
            self.memory[address] = value
        return self.memory.get(address, 0)

    def driver(self, access: Access) -> tuple[SimpleNamespace, VringVirtqueue]:
        return bind(driver_half, access, self.replaced), copy.deepcopy(self._vq)

    def device(self, access: Access) -> tuple[SimpleNamespace, Vringh]:
        return bind(device_half, access, self.replaced), copy.deepcopy(self._vr)


def add(f: SimpleNamespace, vq: VringVirtqueue, token: int) -> int:
    """One writable buffer, by which the device knows the request."""
    return int(f.virtqueue_add_direct(vq, [DATA + 16 * token], [8 + token], 0, 0, 1, token, 8 + token))


def take(f: SimpleNamespace, vr: Vringh, token: int) -> int:
    """The next chain's head, or -1. The device sees the request that the driver made, whole."""
    head = int(f.vringh_getdesc(vr, None, 0))
    assert head in (device_half.NOTHING_AVAILABLE, *range(8)), "the ring broke"
    if head >= 0:
        assert (vr.piece_addr[0], vr.piece_len[0]) == (DATA + 16 * token, 8 + token), "a request was seen too early"
    return head


def reap(f: SimpleNamespace, vq: VringVirtqueue, token: int) -> bool:
    """True when request `token` came back, which is the next; with the length that the device said."""
    found = f.virtqueue_get_buf(vq)
    assert found in ((driver_half.NOTHING_USED, 0), (token, 1 + token)), "an answer was seen too early"
    return bool(found[0] == token)


# The programs: what a worker and a driver do with a ring, in their order (device/worker.py, driver/completion.py).


def kicking(rings: Rings, batches: Sequence[int]) -> Callable[[Access], None]:
    """Requests in batches, one look at a kick after each; nobody waits for their end."""

    def run(access: Access) -> None:
        f, vq = rings.driver(access)
        token = 0
        for batch in batches:
            for _ in range(batch):
                assert add(f, vq, token) == 0, "no room"
                token += 1
            if f.virtqueue_kick_prepare(vq):
                access("notify", KICK)

    return run


def serving(rings: Rings, count: int, *, calls: bool = False, sleeps: bool = True) -> Callable[[Access], None]:
    """Take, answer, publish; interrupt if wanted; sleep when there is nothing, until `count` are done."""

    def run(access: Access) -> None:
        f, vr = rings.device(access)
        done = 0
        f.vringh_notify_disable(vr)
        while done < count:
            taken = 0
            while done < count and (head := take(f, vr, done)) >= 0:
                f.vringh_add_used(vr, head, 1 + done)
                done += 1
                taken += 1
            if taken:
                f.vringh_publish_used(vr)
                if calls and f.vringh_need_notify(vr):
                    access("notify", CALL)
                continue
            assert sleeps, "a request is missing"
            if f.vringh_notify_enable(vr):
                access("wait", KICK)
            f.vringh_notify_disable(vr)

    return run


def reaping(rings: Rings, first: int, count: int, *, kicks: bool) -> Callable[[Access], None]:
    """Wait for `first` requests that are out already; then `count` more, one after the other."""

    def wait_for(access: Access, f: SimpleNamespace, vq: VringVirtqueue, tokens: Sequence[int]) -> None:
        left = list(tokens)
        while left:
            if f.virtqueue_enable_cb(vq):
                access("wait", CALL)
            f.virtqueue_disable_cb(vq)
            while left and reap(f, vq, left[0]):
                del left[0]

    def run(access: Access) -> None:
        f, vq = rings.driver(access)
        wait_for(access, f, vq, range(first))
        for token in range(first, first + count):
            assert add(f, vq, token) == 0, "no room"
            if f.virtqueue_kick_prepare(vq):
                access("notify", KICK)
            assert kicks, "nobody is to be kicked"
            wait_for(access, f, vq, [token])

    return run


Replaced = Mapping[str, Any]
NOTHING: Replaced = {}


def kick_models(event_idx: bool, machine: str, replaced: Replaced, base: int, more: bool = False) -> Iterator[Model]:
    """A driver that kicks and a device that sleeps."""
    sizes = [(2, [1, 1]), (2, [2]), (4, [2, 1]), (4, [1, 2])]
    for num, batches in sizes if more else sizes[:3] if machine == TSO else sizes[:2]:
        rings = Rings(num, base, event_idx, replaced)
        yield Model([kicking(rings, batches), serving(rings, sum(batches))], rings.memory, machine)


def call_models(event_idx: bool, machine: str, replaced: Replaced, base: int, more: bool = False) -> Iterator[Model]:
    """A driver that sleeps until its requests are done, and a device that interrupts."""
    for num, count in (2, 1), (2, 2), (4, 3):
        rings = Rings(num, base, event_idx, replaced, ahead=count)
        device = serving(rings, count, calls=True, sleeps=False)
        yield Model([reaping(rings, count, 0, kicks=False), device], rings.memory, machine)


def whole_models(event_idx: bool, machine: str, replaced: Replaced, base: int, more: bool = False) -> Iterator[Model]:
    """Both sleep, both wake each other: requests one after the other, on rings whose slots are used again."""
    for num, count in [(1, 2), (2, 2), (2, 3)] if more else [(1, 2)]:
        rings = Rings(num, base, event_idx, replaced)
        yield Model([reaping(rings, 0, count, kicks=True), serving(rings, count, calls=True)], rings.memory, machine)


MODELS = {"kick": kick_models, "call": call_models, "whole": whole_models}
MODES = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])


def first_failure(what: str, event_idx: bool, machine: str, replaced: Replaced, base: int = 65535) -> Failure | None:
    models = MODELS[what](event_idx, machine, replaced, base)
    return next((model.failure for model in models if model.failure), None)


@pytest.mark.parametrize("base", [0, 65535])
@pytest.mark.parametrize("what", MODELS)
@pytest.mark.parametrize("machine", [TSO, PSO])
@MODES
def test_no_interleaving_is_wrong(what: str, base: int, event_idx: bool, machine: str) -> None:
    for model in MODELS[what](event_idx, machine, NOTHING, base):
        assert model.failure is None
        assert model.ends >= 1


@pytest.mark.slow
@pytest.mark.parametrize("what", MODELS)
@MODES
def test_no_interleaving_of_more_requests_is_wrong(what: str, event_idx: bool) -> None:
    for model in MODELS[what](event_idx, PSO, NOTHING, 65534, more=True):
        assert model.failure is None


# What each proof leans on, taken out: the search has to find what is wrong then.


def nothing(*arguments: Any) -> int:
    return 0


ASLEEP, EARLY = "everybody sleeps", "was seen too early"
#: In both modes: which proof fails, on which machine, and how, when a fence, a check or an order is missing.
TAKEN_OUT: dict[str, tuple[str, str, str, Replaced]] = {
    "the driver's fence before it looks for a kick": (
        *("kick", TSO, ASLEEP),
        {"virtqueue_kick_prepare.fence_seq_cst": nothing},
    ),
    "the device's fence before it looks again": ("kick", TSO, ASLEEP, {"vringh_notify_enable.fence_seq_cst": nothing}),
    "the device's second look": ("kick", TSO, ASLEEP, {"vringh_notify_enable.vringh_available": nothing}),
    "the device's fence before it looks for a call": (
        *("call", TSO, ASLEEP),
        {"vringh_need_notify.fence_seq_cst": nothing},
    ),
    "the driver's fence before it looks again": ("call", TSO, ASLEEP, {"virtqueue_enable_cb.fence_seq_cst": nothing}),
    "the driver's second look": ("call", TSO, ASLEEP, {"virtqueue_enable_cb.virtqueue_more_used": nothing}),
    "one fence, where both sides sleep": ("whole", TSO, ASLEEP, {"vringh_need_notify.fence_seq_cst": nothing}),
    "the release of avail->idx": ("kick", PSO, EARLY, {"publish.store_release_u16": "store_u16"}),
    "the release of used->idx": ("call", PSO, EARLY, {"vringh_publish_used.store_release_u16": "store_u16"}),
}
#: Only where notifications are suppressed by an event index.
EVENT_IDX_TAKEN_OUT: dict[str, tuple[str, str, str, Replaced]] = {
    f"{name}, {what}": (what, TSO, ASLEEP, {"vring_need_event": function})
    for what in ("kick", "call")
    for name, function in (
        ("the wrap of event indices", need_event_without_wrap),
        ("an event index", need_event_one_late),
        ("the last event index", need_event_one_early),
    )
}


@pytest.mark.parametrize("missing", TAKEN_OUT)
@MODES
def test_each_proof_fails_without_what_it_leans_on(missing: str, event_idx: bool) -> None:
    what, machine, how, replaced = TAKEN_OUT[missing]
    found = first_failure(what, event_idx, machine, replaced)
    assert found is not None
    assert how in found.why
    assert len(found.steps) > 2


@pytest.mark.parametrize("missing", EVENT_IDX_TAKEN_OUT)
def test_each_proof_fails_without_exact_event_indices(missing: str) -> None:
    what, machine, how, replaced = EVENT_IDX_TAKEN_OUT[missing]
    found = first_failure(what, True, machine, replaced)
    assert found is not None
    assert how in found.why


def test_the_wrap_is_what_is_missed() -> None:
    """Away from the wrap the comparison without it is right: the proofs have to begin at 65535."""
    replaced = {"vring_need_event": need_event_without_wrap}
    assert first_failure("kick", True, TSO, replaced, base=100) is None


# The machine, by the litmus tests that tell machines apart.

X, Y = 1, 2


def outcomes(machine: str, *programs: Callable[[Access], int]) -> set[tuple[int, ...]]:
    """What the programs can return together."""
    found = set()

    def run(program: Callable[[Access], int], place: int) -> Callable[[Access], None]:
        def body(access: Access) -> None:
            access("store", -1 - place, program(access) + 1)

        return body

    class Recorder(Model):
        def _successors(self, state: Any) -> Any:
            following = super()._successors(state)
            if not following:
                places = [self._word(-1 - place) for place in range(len(programs))]
                found.add(tuple(state[2][place] - 1 for place in places))
            return following

    model = Recorder([run(program, place) for place, program in enumerate(programs)], {X: 0, Y: 0}, machine)
    assert model.failure is None
    return found


def store_then_load(mine: int, other: int, fenced: bool) -> Callable[[Access], int]:
    def body(access: Access) -> int:
        access("store", mine, 1)
        if fenced:
            access("fence")
        return access("load", other)

    return body


def store_twice(second: str) -> Callable[[Access], int]:
    def body(access: Access) -> int:
        access("store", X, 1)
        return access(second, Y, 1)

    return body


def load_both(access: Access) -> int:
    return 10 * access("load", Y) + access("load", X)


@pytest.mark.parametrize("machine", [TSO, PSO])
def test_a_load_overtakes_a_store_but_no_fence(machine: str) -> None:
    free = {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert outcomes(machine, store_then_load(X, Y, False), store_then_load(Y, X, False)) == free
    assert outcomes(machine, store_then_load(X, Y, True), store_then_load(Y, X, True)) == free - {(0, 0)}


def test_stores_keep_their_order_or_a_release_makes_them() -> None:
    in_order = {(0, 0), (0, 1), (0, 11)}
    assert outcomes(TSO, store_twice("store"), load_both) == in_order
    assert outcomes(PSO, store_twice("release"), load_both) == in_order
    assert outcomes(PSO, store_twice("store"), load_both) == in_order | {(0, 10)}


def test_a_thread_sees_its_own_stores() -> None:
    assert outcomes(PSO, store_then_load(X, X, False)) == {(1,)}


def test_a_sleeper_that_nobody_wakes_is_found() -> None:
    def sleeper(access: Access) -> None:
        access("wait", KICK)

    def waker(access: Access) -> None:
        access("notify", KICK)

    assert Model([sleeper, waker], {}).failure is None
    found = Model([sleeper, sleeper, waker], {}).failure
    assert found is not None
    assert found.why == "everybody sleeps: [('wait', 'kick')]"
    assert found.steps[0][0] == 2
