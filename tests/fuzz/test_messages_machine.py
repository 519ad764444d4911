"""Sequences of messages against the back end, held to a model of the protocol: answers, ring states, descriptors.

Hypothesis chooses the messages, sound and broken. After each one the device runs exactly the rings that the model says,
from the indices that it says, memory is what was shared, and this process holds the descriptors that the back end owns
and no other. A failing sequence comes out minimised.
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vhost_user.fakes import FEATURES, PROTOCOL_FEATURES, UNACKED, VERSION_1, FakeDevice, Session, open_fds
from virtblk.uapi.vhost_user import FrontendRequest as Request
from virtblk.vhost_user.backend import MAX_MEM_SLOTS

GUEST, USER, PAGE = 0x4000_0000, 0x7000_0000_0000, 4096
OFFERED = FEATURES | PROTOCOL_FEATURES
SLOTS = 4  # places in guest memory for regions of a page
QUEUES = FakeDevice.max_queues
#: How far a ring of the fake device gets each time that it runs.
ADVANCE = 5

# Mostly what is served: a refusal teaches little.
indices = st.sampled_from([0, 0, 0, 0, 0, 1, 1, 1, QUEUES, 255])
nums = st.sampled_from([64, 64, 256, 1, 32768, 0, 3, 65536])
descriptors = st.sampled_from(["event"] * 6 + ["none", "none", "missing", "memory", "two"])
slots = st.integers(0, SLOTS - 1)
rarely = st.sampled_from([False] * 7 + [True])


@dataclass
class Ring:
    num: int = 0
    base: int = 0
    addr: tuple[int, int, int] = (0, 0, 0)
    addr_set: bool = False
    started: bool = False
    enabled: bool = False
    running: bool = False
    fds: set[str] = field(default_factory=set)


class Messages(RuleBasedStateMachine):
    """The model, beside a session."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.memfd = os.memfd_create("guest")
        self.stack.callback(os.close, self.memfd)
        os.ftruncate(self.memfd, SLOTS * PAGE)
        self.eventfd = os.eventfd(0)
        self.stack.callback(os.close, self.eventfd)
        self.open()

    def open(self) -> None:
        self.session = Session()
        self.rings = [Ring() for _ in range(QUEUES)]
        self.regions: dict[int, tuple[int, int]] = {}
        self.features: int | None = None
        self.backend_fd = False
        self.session.frontend.set_protocol_features(self.session.frontend.get_protocol_features())
        self.held = open_fds()

    def teardown(self) -> None:
        if hasattr(self, "session"):
            self.session.close()
            self.stack.close()

    # The model.

    def halt(self, ring: Ring) -> None:
        if ring.running:
            ring.running = False
            ring.base = (ring.base + ADVANCE) & 0xFFFF

    def update(self, ring: Ring) -> None:
        may = ring.started and ring.enabled and ring.num > 0 and ring.addr_set and bool(self.regions)
        if not may:
            self.halt(ring)
        ring.running = may

    def pause(self) -> None:
        for ring in self.rings:
            self.halt(ring)

    def resume(self) -> None:
        for ring in self.rings:
            self.update(ring)

    def ring(self, index: int) -> Ring | None:
        return self.rings[index] if index < QUEUES else None

    def tell(self, request: int, layout: str, *values: int, fds: tuple[int, ...] = (), refused: bool) -> bool:
        """Send a message and compare its acknowledgement; whether it was served."""
        payload = struct.pack(layout, *values) if layout else b""
        assert self.session.ack(request, payload, fds) == int(refused), (Request(request).name, values)
        return not refused

    # Rings.

    @rule(index=indices, num=nums)
    def set_vring_num(self, index: int, num: int) -> None:
        ring = self.ring(index)
        good = ring is not None and not ring.running and 0 < num <= 32768 and num & (num - 1) == 0
        if self.tell(Request.VHOST_USER_SET_VRING_NUM, "<II", index, num, refused=not good):
            assert ring is not None
            ring.num = num
            self.update(ring)

    @rule(index=indices, base=st.sampled_from([0, 1, 65530, 65535, 65536, 1 << 31]))
    def set_vring_base(self, index: int, base: int) -> None:
        ring = self.ring(index)
        good = ring is not None and not ring.running and base <= 65535
        if self.tell(Request.VHOST_USER_SET_VRING_BASE, "<II", index, base, refused=not good):
            assert ring is not None
            ring.base = base

    @rule(index=indices, desc=slots, avail=slots, used=slots, off=st.sampled_from([0, 0, 0, 1, 2, 4, 8]))
    def set_vring_addr(self, index: int, desc: int, avail: int, used: int, off: int) -> None:
        ring = self.ring(index)
        addr = (USER + desc * PAGE + off, USER + avail * PAGE + off, USER + used * PAGE + off)
        good = ring is not None and addr[0] % 16 == 0 and addr[1] % 2 == 0 and addr[2] % 4 == 0
        values = (index, 0, addr[0], addr[2], addr[1], 0)
        if self.tell(Request.VHOST_USER_SET_VRING_ADDR, "<IIQQQQ", *values, refused=not good):
            assert ring is not None
            if addr != ring.addr:
                self.halt(ring)
                ring.addr, ring.addr_set = addr, True
                self.update(ring)

    @rule(index=indices, how=descriptors)
    def set_vring_kick(self, index: int, how: str) -> None:
        if self.set_vring_fd(Request.VHOST_USER_SET_VRING_KICK, "kick", index, how):
            ring = self.rings[index]
            if not (self.features or 0) & PROTOCOL_FEATURES:
                ring.enabled = True
            self.halt(ring)
            ring.started = True
            self.update(ring)

    @rule(index=indices, how=descriptors)
    def set_vring_call(self, index: int, how: str) -> None:
        self.set_vring_fd(Request.VHOST_USER_SET_VRING_CALL, "call", index, how)

    @rule(index=indices, how=descriptors)
    def set_vring_err(self, index: int, how: str) -> None:
        if self.set_vring_fd(Request.VHOST_USER_SET_VRING_ERR, "err", index, how):
            self.halt(self.rings[index])
            self.update(self.rings[index])

    def set_vring_fd(self, request: int, name: str, index: int, how: str) -> bool:
        fds = {"event": (self.eventfd,), "memory": (self.memfd,), "two": (self.eventfd,) * 2}.get(how, ())
        value = index | (0x100 if how == "none" else 0)
        if not self.tell(request, "<Q", value, fds=fds, refused=index >= QUEUES or how not in ("event", "none")):
            return False
        (self.rings[index].fds.add if fds else self.rings[index].fds.discard)(name)
        return True

    @rule(index=st.integers(0, QUEUES - 1))
    def start_ring(self, index: int) -> None:
        """All that it takes, as far as it is missing."""
        if not self.regions:
            self.set_mem_table([0, 1], False, False)
        if not self.rings[index].num:
            self.set_vring_num(index, 64)
        self.set_vring_addr(index, 0, 0, 1, 0)
        self.set_vring_kick(index, "event")
        self.set_vring_enable(index, 1)
        assert self.rings[index].running

    @rule(index=indices, enable=st.sampled_from([1, 1, 0, 0, 2]))
    def set_vring_enable(self, index: int, enable: int) -> None:
        ring = self.ring(index)
        if self.tell(Request.VHOST_USER_SET_VRING_ENABLE, "<II", index, enable, refused=ring is None or enable > 1):
            assert ring is not None
            ring.enabled = bool(enable)
            self.update(ring)

    @rule(index=st.integers(0, QUEUES - 1), num=st.sampled_from([0, 7]))
    def get_vring_base(self, index: int, num: int) -> None:
        ring = self.rings[index]
        self.halt(ring)
        ring.started = False
        ring.fds.discard("kick")
        reply = self.session.ask(Request.VHOST_USER_GET_VRING_BASE, struct.pack("<II", index, num))
        assert struct.unpack("<II", reply.payload) == (index, ring.base)

    # Memory.

    @rule(
        chosen=st.lists(slots, min_size=1, max_size=SLOTS, unique=True), missing=rarely, beyond=rarely, overlap=rarely
    )
    def set_mem_table(self, chosen: list[int], missing: bool, beyond: bool, overlap: bool = False) -> None:
        """A table that cannot be is refused before anything changes; one that cannot be mapped leaves none."""
        table = [(GUEST + slot * PAGE, PAGE, USER + slot * PAGE, slot * PAGE) for slot in chosen]
        if beyond:
            table[-1] = (*table[-1][:3], SLOTS * PAGE)
        if overlap:
            table.append(table[0])
        fds = (self.memfd,) * (len(table) - missing)
        cannot_be = missing or overlap
        values = [value for region in table for value in region]
        layout = "<II" + "QQQQ" * len(table)
        refused = cannot_be or beyond
        self.tell(Request.VHOST_USER_SET_MEM_TABLE, layout, len(table), 0, *values, fds=fds, refused=refused)
        if not cannot_be:
            self.pause()
            self.regions = {} if beyond else {region[0]: (region[1], region[2]) for region in table}
            self.resume()

    @rule(slot=slots, size=st.sampled_from([PAGE] * 6 + [0, 1 << 63, 1 << 40]), missing=rarely)
    def add_mem_reg(self, slot: int, size: int, missing: bool) -> None:
        region = (GUEST + slot * PAGE, size, USER + slot * PAGE, slot * PAGE)
        overlaps = any(region[0] < at + held and at < region[0] + size for at, (held, _) in self.regions.items())
        assert len(self.regions) < MAX_MEM_SLOTS
        cannot_be = missing or overlaps or size == 0
        too_long = size > PAGE
        fds = () if missing else (self.memfd,)
        self.tell(Request.VHOST_USER_ADD_MEM_REG, "<QQQQQ", 0, *region, fds=fds, refused=cannot_be or too_long)
        if not cannot_be:
            self.pause()
            if not too_long:
                self.regions[region[0]] = region[1:3]
            self.resume()

    @rule(slot=slots, size=st.sampled_from([PAGE, PAGE, PAGE, PAGE + 1]), with_fd=st.booleans())
    def rem_mem_reg(self, slot: int, size: int, with_fd: bool) -> None:
        region = (GUEST + slot * PAGE, size, USER + slot * PAGE)
        known = self.regions.get(region[0]) == region[1:]
        fds = (self.memfd,) if with_fd else ()
        if self.tell(Request.VHOST_USER_REM_MEM_REG, "<QQQQQ", 0, *region, 12345, fds=fds, refused=not known):
            self.pause()
            del self.regions[region[0]]
            self.resume()

    # Features, and the rest.

    @rule(bits=st.sampled_from([OFFERED, OFFERED, FEATURES, 0, PROTOCOL_FEATURES, OFFERED & ~VERSION_1, 1 << 34]))
    def set_features(self, bits: int) -> None:
        offered = bits & ~OFFERED == 0
        device_bits = bits & ~PROTOCOL_FEATURES
        refused = not offered or (bits != self.features and bool(device_bits) and not device_bits & VERSION_1)
        self.tell(Request.VHOST_USER_SET_FEATURES, "<Q", bits, refused=refused)
        if offered and bits != self.features:
            self.pause()
            if not refused:
                self.features = bits
            self.resume()
        if not refused and not bits & PROTOCOL_FEATURES:
            for ring in self.rings:
                ring.enabled = True
                self.update(ring)

    @rule()
    def reset_owner(self) -> None:
        self.tell(Request.VHOST_USER_RESET_OWNER, "", refused=False)
        for ring in self.rings:
            ring.enabled = False
            self.update(ring)

    @rule(good=st.booleans())
    def set_backend_req_fd(self, good: bool) -> None:
        reader, writer = os.pipe()
        fd = writer if good else self.memfd
        self.tell(Request.VHOST_USER_SET_BACKEND_REQ_FD, "", fds=(fd,), refused=not good)
        self.backend_fd = self.backend_fd or good
        os.close(reader)
        os.close(writer)

    @rule(
        request=st.sampled_from([0, 6, 7, 32, 34, 35, 46, 1 << 31]),
        payload=st.binary(max_size=64),
        fds=st.integers(0, 8),
    )
    def unknown_request(self, request: int, payload: bytes, fds: int) -> None:
        assert self.session.ack(request, payload, (self.eventfd,) * fds) == 1

    @rule(request=st.sampled_from([2, 3, 4, 5, 8, 9, 10, 12, 13, 14, 16, 18, 25, 37, 38]), fds=st.integers(0, 8))
    def payload_of_no_size(self, request: int, fds: int) -> None:
        assert self.session.ack(request, bytes(13), (self.eventfd,) * fds) == 1

    @rule(request=st.sampled_from([1, 15, 17, 36]))
    def questions(self, request: int) -> None:
        assert len(self.session.ask(request, flags=UNACKED).payload) == 8

    @rule(index=indices.filter(lambda index: index >= QUEUES))
    def refused_without_an_acknowledgement(self, index: int) -> None:
        """Ends the session, with everything that belonged to it."""
        self.session.conn.send(Request.VHOST_USER_SET_VRING_NUM, UNACKED, struct.pack("<II", index, 64), (), 10)
        assert "closed" in self.session.wait()
        self.session.close()
        self.open()

    @invariant()
    def what_runs_is_what_should(self) -> None:
        if not hasattr(self, "session"):
            return
        running = {index: ring.base for index, ring in enumerate(self.rings) if ring.running}
        assert self.session.device.bases == running
        assert self.session.memory.regions == self.regions

    @invariant()
    def what_is_open_is_owned(self) -> None:
        if hasattr(self, "session"):
            owned = sum(len(ring.fds) for ring in self.rings) + self.backend_fd
            assert open_fds() == self.held + owned


TestMessages = Messages.TestCase
