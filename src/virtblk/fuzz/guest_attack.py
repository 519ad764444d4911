"""The attacker in the guest: memory, one ring, and the kernels of `fuzz.guest` on a thread of their own.

Control thread. A broken ring is given back (GET_VRING_BASE, which is a question that has to be answered) and made anew;
a session that the device closed is opened again. Between its turns the attacker has no session, since many devices
serve one client at a time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from virtblk.fuzz.case import CRASH, HANG, WRONG, Case, DeviceFailed
from virtblk.fuzz.groups import GUEST, ITEMS, Coverage
from virtblk.fuzz.guest.batch import GUARD_CHECK, GUARD_WRITE, JUDGE, LOOP, MAKE, OFFER, SEEDS, drive
from virtblk.fuzz.guest.generate import MAX_SECTORS
from virtblk.fuzz.guest.state import (
    DONE,
    FINDING_TEXT,
    FLIP_DTYPE,
    FLIPS,
    FOUND,
    HEADER_AT,
    PIECE_DTYPE,
    RANGE_DTYPE,
    RANGES,
    SLOT_BYTES,
    SLOT_DESCS,
    SLOT_DTYPE,
    STALLED,
    STATE_DTYPE,
    TABLE_AT,
    Guest,
)
from virtblk.fuzz.messages import Facts
from virtblk.fuzz.target import Target, Usage
from virtblk.jit.arith import mix64
from virtblk.jit.atomics import load_i64, load_u16, load_u32, store_release_i64, store_u16
from virtblk.jit.table import Table
from virtblk.jit.warmup import ensure
from virtblk.mem.shm import Arena, Words
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.virtio_blk import (
    BLK_CONFIG_SIZE_1_1,
    SECTOR_SIZE,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_WRITE_ZEROES,
)
from virtblk.uapi.virtio_config import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from virtblk.uapi.virtio_ring import (
    AVAIL_IDX,
    DESC_ADDR,
    DESC_FLAGS,
    DESC_LEN,
    DESC_NEXT,
    DESC_SIZE,
    USED_ELEM_SIZE,
    USED_IDX,
    USED_RING,
)
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.frontend import Frontend, Region, RequestRefused
from virtblk.vhost_user.message import ProtocolError
from virtblk.virtio.virtqueue import SplitLayout

#: Requests of a batch at most; each has SLOT_DESCS descriptors of the ring.
SLOTS: Final = 32
RING_SIZE: Final = SLOTS * SLOT_DESCS
#: One request in so many may break its ring.
BREAKING_EVERY: Final = 4096
#: How long a ring that may be broken is waited for, once it does nothing.
_STALL_NS: Final = 20_000_000
#: The same where only requests are broken that a ring can survive, until it is known that they do cost this device its
#: ring: after so many times.
_MUTATED_NS: Final = 500_000_000
_STALLS: Final = 3
#: Batches that are looked through for what caused a failure, step by step.
_SUSPECTS: Final = (1, 2, 4, 16, 64, 512)
#: Turns between two looks at what the process holds.
_TURNS_PER_LOOK: Final = 8
#: Requests that are described for a reader.
_DESCRIBED: Final = 8
#: Features that some of the sessions go without.
_SOMETIMES: Final = (VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX, VIRTIO_BLK_F_FLUSH)
_BLK_SIZE_AT: Final = 20
_WAIT_SECONDS: Final = 0.1


class _Closed(Exception):
    """The device ended the session, which it may."""


class GuestAttack:
    """Batches of requests: batch `n` of a seed is always the same, for a device that offers the same features."""

    name = GUEST

    def __init__(self, target: Target, facts: Facts, seed: int, coverage: Coverage) -> None:
        self._target = target
        self._facts = facts
        self._coverage = coverage
        self._user_seed = seed
        self._seed = mix64(seed) >> 2
        self.rings = 0  # made anew
        self.stalls = 0
        self.sessions = 0
        self.dead_sessions = 0  # in which a ring that had been broken could not be used again
        self._renewed = False  # this session's ring was broken, and made anew
        self._reconnects = False  # as it has shown, this device needs a new session for that
        self._connection: Connection | None = None
        self._front: Frontend | None = None
        self._guarded = False
        self._baseline: Usage | None = None
        self._turns = 0
        self._turn_began = 0
        self._features = 0
        self._layout = SplitLayout.of(RING_SIZE)
        self._arena = Arena(self._layout.size + SLOTS * SLOT_BYTES + (1 << 16))
        self._fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3)]
        self._words = Words(1)
        self._guest = Guest(
            Table(1, STATE_DTYPE),
            Table(SLOTS, SLOT_DTYPE),
            Table(SLOTS * SLOT_DESCS, PIECE_DTYPE),
            Table(SLOTS * RANGES, RANGE_DTYPE),
            Table(SLOTS * FLIPS, FLIP_DTYPE),
            Table(SLOTS),
            Table(RING_SIZE),
            Table(SLOTS * SLOT_BYTES // 8),
            Table(RING_SIZE * 2),
            Table(ITEMS),
        )
        self._prepare()
        ensure(drive, self._guest, 0, 0, 0)

    @property
    def _state(self) -> Any:
        return self._guest.state[0]

    @property
    def inputs(self) -> int:
        return int(self._state["requests"])

    def details(self) -> dict[str, int]:
        """Counts for the report."""
        state = self._state
        names = ("batches", "mutations", "answered")
        return {name: int(state[name]) for name in names} | {
            "rings": self.rings,
            "stalls": self.stalls,
            "guest_sessions": self.sessions,
            "dead_sessions": self.dead_sessions,
        }

    def _prepare(self) -> None:
        state, facts = self._state, self._facts
        ring = self._arena.alloc(self._layout.size, 4096)
        for area in ("desc", "avail", "used"):
            state[area] = ring + getattr(self._layout, area)
        state["num"] = RING_SIZE
        state["slots"] = SLOTS
        state["slot_at"] = self._arena.alloc(SLOTS * SLOT_BYTES, SLOT_BYTES)
        state["scratch"] = self._arena.alloc(2 * SLOT_BYTES, SLOT_BYTES)
        state["start"], state["end"] = self._arena.address, self._arena.address + self._arena.length
        state["shadow_at"], state["descs_at"] = self._guest.shadow.address, self._guest.descs.address
        state["kick_fd"], _, state["err_fd"] = self._fds
        self._accept(facts.session_features)
        state["capacity"] = facts.capacity
        guard = 0 if state["read_only"] else min(SLOTS * MAX_SECTORS, facts.capacity // 4 // MAX_SECTORS * MAX_SECTORS)
        state["guard_count"] = guard
        state["guard_first"] = facts.capacity - guard
        state["strict"] = 1
        state["seed"] = self._seed
        state["breaking_every"] = BREAKING_EVERY
        state["stop"] = self._words.address(0)
        state["timeout_ns"] = int(self._target.timeout * 1e9)
        state["stall_ns"] = min(_STALL_NS, int(state["timeout_ns"]))
        state["mutated_ns"] = min(_MUTATED_NS, int(state["timeout_ns"]))

    def _accept(self, features: int) -> None:
        """The features of the next session: they decide what its requests are."""
        self._features = features
        for field, bit in (
            ("event_idx", VIRTIO_RING_F_EVENT_IDX),
            ("indirect", VIRTIO_RING_F_INDIRECT_DESC),
            ("flush", VIRTIO_BLK_F_FLUSH),
            ("discard", VIRTIO_BLK_F_DISCARD),
            ("write_zeroes", VIRTIO_BLK_F_WRITE_ZEROES),
            ("read_only", VIRTIO_BLK_F_RO),
        ):
            self._state[field] = features >> bit & 1

    # The session.

    @contextmanager
    def _talking(self) -> Iterator[Frontend]:
        """Turn what goes wrong with sound messages into failures, and the end of the session into _Closed."""
        assert self._front is not None
        try:
            yield self._front
        except TimeoutError as error:
            raise DeviceFailed(HANG, str(error)) from None
        except (ProtocolError, RequestRefused) as error:
            raise DeviceFailed(WRONG, str(error)) from None
        except (ConnectionClosed, ConnectionError) as error:
            self._disconnect()
            self._target.check_alive()
            raise _Closed(str(error)) from None

    def _connect(self) -> None:
        """A sound session with a ring that runs, unless there is one. DeviceFailed where that does not work."""
        if self._front is not None:
            return
        self._connection = Connection(self._target.greet())
        self._front = Frontend(self._connection, self._target.timeout)
        self.sessions += 1
        self._renewed = False
        try:
            with self._talking() as front:
                if front.get_features() >> uapi.VHOST_USER_F_PROTOCOL_FEATURES & 1:
                    front.get_protocol_features()
                    front.set_protocol_features(self._facts.protocol_features)
                front.set_owner()
                front.set_features(self._features)
                config = front.get_config(BLK_CONFIG_SIZE_1_1)
                state = self._state
                if self._facts.features >> VIRTIO_BLK_F_BLK_SIZE & 1:
                    block = int.from_bytes(config[_BLK_SIZE_AT : _BLK_SIZE_AT + 4], "little")
                    if block > SECTOR_SIZE:  # requests of less than a block may be refused
                        state["strict"] = state["guard_count"] = 0
                        state["guard_first"] = self._facts.capacity
                start = int(state["start"])
                front.set_mem_table([Region(start, self._arena.length, start, 0, self._arena.fd)])
            self._start_ring()
        except _Closed as closed:
            raise DeviceFailed(CRASH, f"an honest client is disconnected: {closed}") from None
        if not self._guarded:
            self._write_guard()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._front = None

    def _start_ring(self) -> None:
        """A new ring, at an index that its first batch chooses."""
        state = self._state
        base = int(mix64(self._seed + int(state["batch"])) & 0xFFFF)
        ring = self._arena.array(int(state["desc"]), self._layout.size)
        ring[:] = 0
        store_u16(int(state["avail"]) + AVAIL_IDX, base)
        store_u16(int(state["used"]) + USED_IDX, base)
        # What a device that ran until now has left there: not all of them say anew that they want to be kicked.
        store_u16(int(state["used"]) + USED_RING + USED_ELEM_SIZE * RING_SIZE, base)
        state["idx"] = state["used_idx"] = base
        self._guest.out[:] = 0
        for fd in self._fds:
            with suppress(BlockingIOError):
                os.eventfd_read(fd)
        kick, call, err = self._fds
        with self._talking() as front:
            desc, avail, used = (int(state[area]) for area in ("desc", "avail", "used"))
            front.start_vring(0, RING_SIZE, base, desc, avail, used, kick, call, err)
            os.eventfd_write(kick, 1)

    def _renew(self, code: int) -> None:
        """Take the ring back, judge what became of the last batch, and start another.

        A device may be unable to start a broken ring again in the same session. Once that has shown, there is a new
        session instead; in one whose ring never broke every sound request has to be answered.
        """
        state = self._state
        sound = code == STALLED and not state["mutated"]
        renewed, self._renewed = self._renewed, True
        self.rings += 1
        self.stalls += code == STALLED
        if self.stalls == _STALLS:
            state["mutated_ns"] = state["stall_ns"]
        try:
            with self._talking() as front:
                front.get_vring_base(0)
            if self._call(JUDGE) == FOUND:
                raise self._failure()
            if sound and not renewed:
                raise self._unanswered()
            self._reconnects = self._reconnects or sound
            if not self._reconnects:
                self._start_ring()
                return
            self.dead_sessions += 1
            self._disconnect()
        except _Closed:
            pass
        self._connect()

    def _unanswered(self) -> DeviceFailed:
        missing = int(self._state["outstanding"])
        return DeviceFailed(HANG, f"{missing} sound requests are not answered within {self._target.timeout:g} s")

    def _failure(self) -> DeviceFailed:
        state = self._state
        text = FINDING_TEXT[int(state["finding"])]
        text = text.format(value=int(state["finding_value"]), at=int(state["finding_at"]))
        state["finding"] = 0
        return DeviceFailed(WRONG, f"{text} (request {int(state['finding_slot'])} of its batch)")

    def _call(self, what: int, first: int = 0, second: int = 0) -> int:
        """Run `drive` on a thread of its own, so that Ctrl-C can stop it. It does not run any more on return."""
        result: list[Any] = []
        done = threading.Event()
        gate = threading.Lock()
        begun = given_up = False

        def work() -> None:
            nonlocal begun
            with gate:
                begun = not given_up
            try:
                if begun:
                    result.append(drive(self._guest, what, first, second))
            except BaseException as error:  # an index out of bounds, in a checking build
                result.append(error)
            finally:
                done.set()

        stop = self._words.address(0)
        store_release_i64(stop, 0)
        try:
            threading.Thread(target=work, name="fuzz guest", daemon=True).start()
            while not done.wait(_WAIT_SECONDS):
                pass
        except BaseException:  # Ctrl-C, inside of start() too
            with gate:
                given_up = True
            store_release_i64(stop, 1)
            while begun and not done.is_set():
                with suppress(KeyboardInterrupt):
                    done.wait(_WAIT_SECONDS)
            raise
        if isinstance(result[0], BaseException):
            raise result[0]
        return int(result[0])

    def _judge(self, code: int) -> None:
        if code == FOUND:
            raise self._failure()
        if code != DONE:
            self._renew(code)

    def _sound(self, what: int, first: int, second: int) -> None:
        """Run a batch in which nothing is broken; every answer has to come, in a new session at the latest."""
        state = self._state
        while True:
            state["mutate"] = 0
            code = self._call(what, first, second)
            state["mutate"] = 1
            if code == FOUND:
                raise self._failure()
            if code == DONE:
                return
            self._target.check_alive()
            if not self._renewed:
                raise self._unanswered()
            self._reconnects = True
            self.dead_sessions += 1
            self._disconnect()
            self._connect()

    def _write_guard(self) -> None:
        first, count = int(self._state["guard_first"]), int(self._state["guard_count"])
        for at in range(0, count, SLOTS):
            self._fill_seeds(range(SLOTS))
            self._sound(GUARD_WRITE, first + at, min(SLOTS, count - at))
        self._guarded = True

    def _check_guard(self) -> None:
        count = int(self._state["guard_count"]) // MAX_SECTORS
        self._fill_seeds(range(SLOTS))
        if count:
            self._sound(GUARD_CHECK, int(self._state["guard_first"]), count)
        else:
            self._sound(OFFER, 0, 1)

    def _fill_seeds(self, seeds: Any) -> None:
        for index, seed in enumerate(seeds):
            self._guest.seeds[index] = seed

    # An attack.

    def attack(self, deadline: float, count: int) -> None:
        state = self._state
        roll = mix64(self._seed + self._turns)
        dropped = sum(1 << bit for number, bit in enumerate(_SOMETIMES) if roll >> 4 * number & 3 == 0)
        self._disconnect()
        self._accept(self._facts.session_features & ~dropped)
        self._turn_began = int(state["batch"])
        self._connect()
        state["mutate"] = 1
        end = self.inputs + count
        ends_ns = int(min(deadline, time.monotonic() + 1e6) * 1e9)
        while time.monotonic_ns() < ends_ns and self.inputs < end:
            try:
                self._judge(self._call(LOOP, ends_ns, end - self.inputs))
            finally:
                self._harvest_hits()
        self._turns += 1
        if self._turns % _TURNS_PER_LOOK == 0:
            self.probe()
        else:
            self._check_guard()  # now, while it is known who may have changed it
            self._disconnect()

    def _harvest_hits(self) -> None:
        hits = self._guest.hits
        for item in range(ITEMS):
            self._coverage.counts[item] += int(hits[item])
        hits[:] = 0

    def probe(self) -> None:
        self._connect()
        self._check_guard()
        self._disconnect()
        if self._turns >= _TURNS_PER_LOOK:
            if self._baseline is None:
                self._baseline = self._target.settled_usage(None)
            self._target.check_usage(self._baseline)

    def suspects(self) -> list[Case]:
        last = int(self._state["batch"])
        settings = {"breaking_every": int(self._state["breaking_every"]), "features": self._features}
        cases = []
        for count in _SUSPECTS:
            steps = []
            for batch in range(max(self._turn_began, last - count) + 1, last + 1):
                steps += [[batch, int(self._guest.seeds[s])] for s in range(drive(self._guest, SEEDS, batch, 0))]
            cases.append(Case(self.name, steps, self._user_seed, settings))
            if count >= last - self._turn_began:
                break
        return cases

    def run(self, case: Case) -> None:
        state = self._state
        self._disconnect()
        state["breaking_every"] = int(case.settings.get("breaking_every", BREAKING_EVERY))
        self._accept(int(case.settings.get("features", self._facts.session_features)) & self._facts.session_features)
        self._connect()
        batches: dict[int, list[int]] = {}
        for batch, seed in case.steps:
            batches.setdefault(batch, []).append(seed)
        for seeds in batches.values():
            state["mutate"] = 1
            self._fill_seeds(seeds[:SLOTS])
            self._judge(self._call(OFFER, 0, len(seeds[:SLOTS])))
            self._connect()
        self._harvest_hits()
        self._check_guard()
        self._disconnect()
        self._target.check_alive()

    def notes(self, case: Case) -> list[str]:
        """The descriptors of the first requests, as they lie in memory."""
        lines = []
        self._state["mutate"] = 1
        for _, seed in case.steps[:_DESCRIBED]:
            self._fill_seeds([seed])
            drive(self._guest, MAKE, 0, 1)
            slot = self._guest.slots[0]
            base = int(self._state["slot_at"])
            lines.append(f"request {seed:#x}: header {bytes(self._arena.array(base + HEADER_AT, 16)).hex()}")
            for k in range(int(slot["pieces"])):
                in_table = bool(slot["in_table"])
                entry = base + TABLE_AT + DESC_SIZE * k if in_table else int(self._state["desc"]) + DESC_SIZE * k
                lines.append(
                    f"  descriptor {k}: address {self._place(load_i64(entry + DESC_ADDR))}, "
                    f"length {load_u32(entry + DESC_LEN)}, flags {load_u16(entry + DESC_FLAGS):#x}, "
                    f"next {load_u16(entry + DESC_NEXT)}"
                )
        self._guest.hits[:] = 0
        return lines

    def _place(self, address: int) -> str:
        start, end = int(self._state["start"]), int(self._state["end"])
        return f"memory + {address - start:#x}" if start <= address < end else f"{address & (1 << 64) - 1:#x}"

    def restarted(self) -> None:
        self._disconnect()
        self._guarded = False
        self._baseline = None
        self._turns = 0

    def close(self) -> None:
        self._disconnect()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._arena.close()
