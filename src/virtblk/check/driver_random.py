"""Misbehaviour without end: seeded plans that lie at random, many times on each connection.

`Chaos` is one connection's plan. Most requests are answered wrongly in a way that concerns that request alone, or in a
way that a driver should not even notice; now and then comes a lie that ends the session, and one connection in eight is
spoilt while it is set up. What each lie demands is kept (`expected`), for a driver that looks at each I/O, and summed
up, for one that has an exit status only. Connection `n` of seed `s` is connection 0 of seed `s + n`.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from virtblk.check.driver_device import FEATURES, REPLY, Device, Plan, Request
from virtblk.check.driver_messages import HANDSHAKE, hang_up, refuse
from virtblk.check.driver_trial import FrontEnd, Hung, NeverConnected, Story, Trial
from virtblk.check.requirement import Failed
from virtblk.errors import OpenError
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi import virtio_blk as blk
from virtblk.vhost_user.message import Message

#: One lie in so many ends the session.
FATAL_ONE_IN: Final = 100
#: One connection in so many is spoilt while it is set up.
HANDSHAKE_ONE_IN: Final = 8
#: Lies on one connection; then the device hangs up.
MOST_LIES: Final = 5000
#: Connections without a request after which a driver is taken for one that sends none.
FRUITLESS: Final = 50
#: Honest answers after a spoilt handshake; then the device hangs up.
MOST_HONEST: Final = 50


class Expected(Enum):
    """What a driver has to make of one request."""

    DONE = 1
    FAILED = 2
    EITHER = 3


@dataclass
class Chaos(Plan):
    """The plan of one connection. `fatal` says what ended the session, "" as long as nothing did."""

    seed: int
    limit: int = MOST_LIES
    told: Counter[str] = field(default_factory=Counter)
    expected: dict[tuple[int, int], Expected] = field(default_factory=dict)
    failing: int = 0  # requests that must be reported as failed
    fatal: str = ""
    doubtful: bool = False  # a lie was told that a driver may take either way

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._spoilt_message = -1
        self._honest = 0
        if self._random.randrange(HANDSHAKE_ONE_IN) == 0:
            self._spoil_handshake()

    @property
    def lies(self) -> int:
        return self.told.total()

    # While the connection is set up.

    def _spoil_handshake(self) -> None:
        if self._random.random() < 0.5:
            self._spoilt_message = int(self._random.choice(HANDSHAKE))
            return
        config = bytearray(self.config)
        for _ in range(self._random.randint(1, 8)):
            config[self._random.randrange(len(config))] = self._random.choice((0, 1, 2, 127, 128, 255))
        self.config = bytes(config)
        self.features = FEATURES | self._random.getrandbits(64) & ~(1 << blk.VIRTIO_BLK_F_RO)
        self.told["config.noise"] += 1
        self.doubtful = True

    def on_message(self, device: Device, msg: Message) -> None:
        if msg.request != self._spoilt_message:
            super().on_message(device, msg)
            return
        self._spoilt_message = -1
        name, action = self._random.choice(_MESSAGE_LIES)
        self.fatal = f"message.{name}"
        self.told[self.fatal] += 1
        self.doubtful = True
        action(device, msg)

    # Requests.

    def on_request(self, device: Device, request: Request) -> None:
        if self.fatal:
            self._after_the_end(device, request)
            return
        if not request.is_io:
            device.complete(request)
            return
        key = request.type, request.sector
        if self.lies >= self.limit or self._random.randrange(FATAL_ONE_IN) == 0:
            name, lie = self._random.choice(_FATAL_LIES)
            self.fatal = f"fatal.{name}"
            self.told[self.fatal] += 1
            self.expected[key] = Expected.EITHER if name == "twice" else Expected.FAILED
            self.failing += name != "twice"
            device.spoil(self.fatal)
            lie(device, request)
            return
        if self._random.random() < 0.5:
            status = self._random.choice(_STATUSES)
            self.told["status.untouched" if status is None else f"status.{min(status, 3)}"] += 1
            self.expected[key] = Expected.FAILED
            self.failing += 1
            device.spoil("a status")
            device.complete(request, status or 0, write_status=status is not None)
            return
        name, harmless = self._random.choice(_HARMLESS)
        self.told[f"harmless.{name}"] += 1
        self.expected[key] = Expected.DONE
        harmless(self, device, request)

    def _after_the_end(self, device: Device, request: Request) -> None:
        """A driver that took a spoilt handshake gets some honest answers; a lie in the used ring has to stand."""
        if self.fatal.startswith("message."):
            self._honest += 1
            if self._honest > MOST_HONEST:
                device.hang_up()
            else:
                device.complete(request)


def _refuse(device: Device, msg: Message) -> None:
    """An error, where an answer is waited for; a driver that asked for none has to hear nothing."""
    if device.answer_of(msg) is None:
        device.obey(msg)
    else:
        refuse(device, msg)


def _bad_reply(size: int, flags: int = REPLY, shift: int = 0) -> Callable[[Device, Message], None]:
    def action(device: Device, msg: Message) -> None:
        device.obey(msg)
        device.send(uapi.HEADER.pack(msg.request + shift, flags, size) + bytes(min(size, 64)))

    return action


_MESSAGE_LIES: Final[list[tuple[str, Callable[[Device, Message], None]]]] = [
    ("hangup", hang_up),
    ("refuse", _refuse),
    ("size-0", _bad_reply(0)),
    ("size-3", _bad_reply(3)),
    ("size-9", _bad_reply(9)),
    ("size-huge", _bad_reply(1 << 31)),
    ("not-a-reply", _bad_reply(8, 1)),
    ("version", _bad_reply(8, 7)),
    ("other", _bad_reply(8, shift=1)),
]


def _num(device: Device) -> int:
    return device.ring.num if device.ring is not None else 1


def _wrong_index(ahead: Callable[[Device], int]) -> Callable[[Device, Request], None]:
    def lie(device: Device, request: Request) -> None:
        if device.ring is not None:
            device.ring.show(ahead(device))
        device.fence()
        device.call()

    return lie


def _twice(device: Device, request: Request) -> None:
    device.complete(request, show=False)
    if device.ring is not None:
        device.ring.put_used(request.head, 1)
    device.publish()


_FATAL_LIES: Final[list[tuple[str, Callable[[Device, Request], None]]]] = [
    ("id-size", lambda device, request: device.complete(request, used_id=_num(device))),
    ("id-huge", lambda device, request: device.complete(request, used_id=0xFFFF0000 | request.head)),
    ("id-free", lambda device, request: device.complete(request, used_id=_num(device) - 1)),
    ("length-over", lambda device, request: device.complete(request, used_len=request.room + 2)),
    ("length-huge", lambda device, request: device.complete(request, used_len=0xFFFFFFFF)),
    ("index-jump", _wrong_index(lambda device: _num(device) + 1)),
    ("index-half", _wrong_index(lambda device: 32768)),
    ("index-back", _wrong_index(lambda device: -1 - _num(device))),  # less far could undo what was not seen yet
    ("twice", _twice),
    ("hangup", lambda device, request: device.hang_up()),
]
_STATUSES: Final = (None, 1, 2, 3, 4, 127, 128, 255)


def _early(chaos: Chaos, device: Device, request: Request) -> None:
    device.call()
    device.complete(request)


def _flood(chaos: Chaos, device: Device, request: Request) -> None:
    for _ in range(8):
        device.call()
    device.complete(request)
    device.call()


def _late(chaos: Chaos, device: Device, request: Request) -> None:
    """Answered after a moment, unless a lie that has to stand was told meanwhile."""
    device.later(0.0005, lambda: None if chaos.fatal else device.complete(request))


def _held_back(chaos: Chaos, device: Device, request: Request) -> None:
    """Answered after those that come later."""

    def release() -> None:
        if request in device.held and not chaos.fatal:
            device.held.remove(request)
            device.complete(request)

    device.held.append(request)
    device.later(0.001, release)


def _noisy_flags(chaos: Chaos, device: Device, request: Request) -> None:
    if device.ring is not None:
        device.ring.used[0] = chaos._random.getrandbits(15) << 1
    device.complete(request)


def _scribbled(chaos: Chaos, device: Device, request: Request) -> None:
    """The descriptors of a request that is answered belong to nobody."""
    if device.ring is not None:
        device.ring.desc[16 * request.head : 16 * request.head + 16] = b"\xff" * 16
    device.complete(request)


def _wrong_id_before_the_index(chaos: Chaos, device: Device, request: Request) -> None:
    """What lies past the used index means nothing yet."""
    if device.ring is not None:
        device.ring.put_used(0xFFFFFFFF, 0xFFFFFFFF)
        device.ring.used_idx = (device.ring.used_idx - 1) & 0xFFFF
    device.fence()
    device.call()
    device.complete(request)


_HARMLESS: Final[list[tuple[str, Callable[[Chaos, Device, Request], None]]]] = [
    ("early", _early),
    ("flood", _flood),
    ("late", _late),
    ("held-back", _held_back),
    ("flags", _noisy_flags),
    ("scribbled", _scribbled),
    ("element-early", _wrong_id_before_the_index),
]


@dataclass
class Summary:
    """What a run of many connections came to. `problems`: (seed of the connection, what was wrong)."""

    lies: int = 0
    connections: int = 0
    told: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[int, str]] = field(default_factory=list)


def run_random(
    front_end: Callable[[Chaos], FrontEnd],
    path: str,
    *,
    seed: int,
    count: int,
    timeout: float,
    most_lies: int = MOST_LIES,
    progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Connect again and again until `count` lies were told. `front_end` makes the driver for a connection's plan."""
    summary = Summary()
    while summary.lies < count:
        chaos = Chaos(seed + summary.connections, most_lies)
        trial = Trial(front_end(chaos), path, timeout)
        try:
            judge(chaos, trial.run(chaos))
        except NeverConnected as error:
            if not summary.connections:
                raise OpenError(errno.ECONNREFUSED, str(error)) from None
            summary.problems.append((chaos.seed, str(error)))
        except (Failed, Hung) as error:
            summary.problems.append((chaos.seed, str(error)))
        summary.connections += 1
        summary.told += chaos.told
        summary.lies += chaos.lies
        progress(summary)
        if summary.connections >= FRUITLESS and not summary.lies:
            raise OpenError(errno.EPROTO, f"the driver sent no request in {summary.connections} connections")
    return summary


def judge(chaos: Chaos, story: Story) -> None:
    """Raises Failed or Hung where the driver did not make of it what it had to."""
    story.demand_sound()
    status = story.outcome.status
    if status == 0 and chaos.failing:
        raise Failed(f"the driver reported success, though {chaos.failing} requests failed ({dict(chaos.told)})")
    if status and not (chaos.failing or chaos.doubtful or chaos.fatal):
        raise Failed(f"the driver gave up, though it lost nothing ({dict(chaos.told)}): {story.outcome.words}")
