"""Random programs of single steps for a `Pair`, and what it takes to run one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from virtio.halves import SIZES, World
from virtio.pair import Pair

Step = tuple[Any, ...]

#: For properties of which an example takes a millisecond: more of them, unless the profile asks for many as it is.
_EXAMPLES = settings.default.max_examples
THOROUGH = settings(max_examples=max(_EXAMPLES, min(4 * _EXAMPLES, 400)))

_CHAIN = st.tuples(
    st.lists(st.integers(1, 700), min_size=1, max_size=6),
    st.integers(0, 6),  # how many of them are writable, the first ones that are not
    st.integers(0, 3),  # 0 direct, 1 indirect, more: with plain descriptors before, where the driver can
)
_ADD = _CHAIN.map(lambda c: ("add", c[0], min(c[1], len(c[0])), c[2]))
_USE = st.tuples(st.just("use"), st.integers(0, 7), st.integers(0, 5000))
_SIMPLE = st.sampled_from(
    [
        *("kick", "get", "enable_cb", "disable_cb"),
        *("take", "publish", "notify", "enable_notify", "disable_notify"),
    ]
).map(lambda name: (name,))
#: Round trips in one go, so that a program gets past the end of small rings and past index 65535.
_ROUNDS = st.tuples(st.just("rounds"), st.integers(1, 9))

_STEPS = st.one_of(_ADD, _ADD, _USE, _USE, _SIMPLE, _SIMPLE, _SIMPLE, _ROUNDS)
#: Lists without a smallest size are short on average: they come first since failures shrink to them.
PROGRAMS = st.one_of(*(st.lists(_STEPS, min_size=smallest, max_size=80) for smallest in (0, 20, 30, 40)))
RINGS = st.sampled_from(SIZES)
BASES = st.one_of(st.sampled_from([0, 65530, 65535, 65408, 32767]), st.integers(0, 65535))


def run(driver: str, device: str, num: int, base: int, event_idx: bool, program: Sequence[Step]) -> None:
    """Run the program on a fresh ring, then finish what is under way."""
    with World(num, event_idx=event_idx, base=base) as world:
        pair = Pair(world, driver, device, event_idx=event_idx, base=base)
        for name, *arguments in program:
            if name == "rounds":
                for _ in range(arguments[0]):
                    round_trip(pair)
            else:
                step: Callable[..., object] = getattr(pair, name)
                step(*arguments)
        pair.drain()


def round_trip(pair: Pair) -> None:
    """One request, with every notification that a worker and a driver that sleep would ask for."""
    pair.enable_notify()
    pair.add([16, 512, 1], 1, 1)
    pair.kick()
    pair.disable_notify()
    pair.take()
    pair.enable_cb()
    pair.use(0, 1)
    pair.notify()
    pair.disable_cb()
    pair.get()
