"""Checks of file descriptors: a device closes what it was sent and does not keep, and unmaps what it had mapped.

docs/interop/vhost-user.rst, "Communication", ADD_MEM_REG, REM_MEM_REG. They look into /proc, so the device has to be a
child of this process: without --exec they are skipped. Each does something a few times to begin with, then counts, does
it many times more, and counts again: a leak is as many more as that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from virtblk.check.refusals import Refusals
from virtblk.check.requirement import DEVICE, Failed, Severity, Skipped
from virtblk.check.runner import Tester
from virtblk.check.session import Session
from virtblk.check.target import UNDERSTOOD_PROTOCOL
from virtblk.check.vhost_memory import ADD_MEM_REG, REM_MEM_REG, SET_MEM_TABLE, memory_of, one_region, region_at, table
from virtblk.check.vhost_ring import SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK, SET_VRING_NUM, restart
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest, ProtocolFeature
from virtblk.vhost_user.connection import SCM_MAX_FD

_SLOTS: Final = (ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,)
_BACKEND_REQ: Final = ProtocolFeature.VHOST_USER_PROTOCOL_F_BACKEND_REQ
_COMMUNICATION: Final = "Communication"
_WARM_UP: Final = 2
_TIMES: Final = 12


class Process:
    """What the device's process has open and mapped, as far as it may be looked at."""

    def __init__(self, t: Tester) -> None:
        if t.target.process is None:
            raise Skipped("the device's open files can be counted with --exec only")
        with t.peer() as peer:
            pid = peer.conn.peer_pid()
        if pid is None:
            raise Skipped("the process that listens is unknown")
        self._proc = Path("/proc") / str(pid)
        self.fds()

    def fds(self) -> int:
        """Open file descriptors."""
        try:
            return sum(1 for _ in (self._proc / "fd").iterdir())
        except OSError as error:
            raise Skipped(f"{error.filename}: {error.strerror}") from None

    def maps(self) -> int:
        """Mappings of guest memory of ours."""
        try:
            return (self._proc / "maps").read_text().count("memfd:virtblk-check")
        except OSError as error:
            raise Skipped(f"{error.filename}: {error.strerror}") from None


def leaks_none(t: Tester, counted: Callable[[], int], what: str, act: Callable[[], object], times: int = _TIMES) -> str:
    """Failed if each `act` leaves something open. A device may be slow to close, so there is some time for it."""
    for _ in range(_WARM_UP):
        act()
    before = counted()
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:  # what the last one had open may be closing
        time.sleep(0.01)
        before = min(before, counted())
    for _ in range(times):
        act()
    deadline = time.monotonic() + max(1.0, t.settle_time)
    while (more := counted() - before) >= times:
        if time.monotonic() > deadline:
            raise Failed(f"{times} times {what} left {more} more of them, {before + more} in all")
        time.sleep(0.01)
    return f"{before} before and {before + more} after {times} times {what}"


# What is kept, and given up.


@DEVICE.must("vhost.fds-session", _COMMUNICATION, Severity.HIGH)
def fds_session(t: Tester) -> str:
    """A session that has ended leaves no descriptor open."""
    process = Process(t)

    def session() -> None:
        with t.session() as session:
            session.read(0, t.block_sectors)

    return leaks_none(t, process.fds, "a session", session)


@DEVICE.must("vhost.fds-ring", "SET_VRING_KICK", Severity.HIGH)
def fds_ring(t: Tester) -> str:
    """A kick, call or error descriptor is closed when another one takes its place."""
    process = Process(t)
    session = t.session()
    ring = session.rings[0]

    def replace() -> None:
        for request in (SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK):
            fd = session.call_fds[0] if request == SET_VRING_CALL else session.kick_fds[0]
            session.peer.tell(request, uapi.U64.pack(ring.index), [fd])

    how = leaks_none(t, process.fds, "other descriptors", replace)
    session.read(0, t.block_sectors)
    return how


@DEVICE.must("vhost.fds-restart", "GET_VRING_BASE", Severity.HIGH)
def fds_restart(t: Tester) -> str:
    """A ring that is stopped and started again leaves no descriptor open."""
    process = Process(t)
    session = t.session()
    ring = session.rings[0]

    def again() -> None:
        session.read(0, t.block_sectors)
        restart(session, ring, session.stop_ring(ring))

    return leaks_none(t, process.fds, "a restart", again)


@DEVICE.must("vhost.fds-table", "SET_MEM_TABLE", Severity.HIGH)
def fds_table(t: Tester) -> str:
    """The descriptors of a memory table are closed, at the latest when another table takes its place."""
    process = Process(t)
    session = t.session()
    return leaks_none(t, process.fds, "a memory table", session.set_mem_table)


@DEVICE.must("vhost.maps-table", "SET_MEM_TABLE", Severity.HIGH)
def maps_table(t: Tester) -> str:
    """The regions of a memory table are unmapped when another table takes its place."""
    process = Process(t)
    session = t.session()
    return leaks_none(t, process.maps, "a memory table", session.set_mem_table)


def _add_and_remove(session: Session, *fds: int) -> None:
    """The second region comes and goes; `fds` go with the removal."""
    region = region_at(1)
    session.peer.tell(ADD_MEM_REG, one_region(region), [session.memory.fd])
    session.peer.tell(REM_MEM_REG, one_region(region), fds)


@DEVICE.must("vhost.fds-region", "ADD_MEM_REG", Severity.HIGH, protocol=_SLOTS)
def fds_region(t: Tester) -> str:
    """The descriptor of a region is closed, at the latest when it is removed."""
    process = Process(t)
    session = t.session(memory=memory_of(2, shown=1), slots=True)
    return leaks_none(t, process.fds, "a region that comes and goes", lambda: _add_and_remove(session))


@DEVICE.must("vhost.maps-region", "REM_MEM_REG", Severity.CRITICAL, protocol=_SLOTS)
def maps_region(t: Tester) -> str:
    """A region that is removed is unmapped."""
    process = Process(t)
    session = t.session(memory=memory_of(2, shown=1), slots=True)
    return leaks_none(t, process.maps, "a region that comes and goes", lambda: _add_and_remove(session))


@DEVICE.must("vhost.fds-removal", "REM_MEM_REG", Severity.HIGH, protocol=_SLOTS)
def fds_removal(t: Tester) -> str:
    """A descriptor that comes with REM_MEM_REG is closed."""
    process = Process(t)
    unsound = Refusals(t, memory=None, slots=True)

    def remove() -> None:
        session = unsound.session
        region = region_at(8)._replace(mmap_offset=0)
        session.add_region(region)
        if session.peer.refusal(REM_MEM_REG, one_region(region), [session.memory.fd]) and not session.peer.gone():
            session.peer.tell(REM_MEM_REG, one_region(region))

    return leaks_none(t, process.fds, "a removal with a descriptor", remove)


@DEVICE.must("vhost.fds-backend-req", "SET_BACKEND_REQ_FD", Severity.HIGH, protocol=(_BACKEND_REQ,))
def fds_backend_req(t: Tester) -> str:
    """The back-end channel is closed when another one takes its place."""
    process = Process(t)
    session = t.session(protocol=UNDERSTOOD_PROTOCOL | 1 << _BACKEND_REQ)

    def channel() -> None:
        _ours, theirs = session.socketpair()
        session.peer.tell(FrontendRequest.VHOST_USER_SET_BACKEND_REQ_FD, fds=[theirs])

    return leaks_none(t, process.fds, "another channel", channel)


# What is not wanted.


@DEVICE.must("vhost.fds-refused", _COMMUNICATION, Severity.HIGH)
def fds_refused(t: Tester) -> str:
    """The descriptors of a message that is refused are closed."""
    process = Process(t)
    unsound = Refusals(t)

    def refused() -> None:
        session = unsound.session
        fds = [session.event_fd(), session.memory.fd]
        unsound.send("a table with an eventfd", SET_MEM_TABLE, table([region_at(0), region_at(1)]), fds)

    return leaks_none(t, process.fds, "a refused table", refused)


@DEVICE.must("vhost.fds-unknown", _COMMUNICATION, Severity.HIGH)
def fds_unknown(t: Tester) -> str:
    """The descriptors of a message that the device does not know are closed."""
    process = Process(t)
    unsound = Refusals(t, start=False)

    def unknown() -> None:
        unsound.send("message 99", 99, bytes(8), [unsound.session.memory.fd] * 2)

    return leaks_none(t, process.fds, "an unknown message", unknown)


@DEVICE.must("vhost.fds-uninvited", _COMMUNICATION, Severity.HIGH)
def fds_uninvited(t: Tester) -> str:
    """Descriptors that come with a message that takes none are closed."""
    process = Process(t)
    unsound = Refusals(t, start=False)

    def uninvited() -> None:
        session = unsound.session
        session.peer.refusal(SET_VRING_NUM, uapi.VRING_STATE.pack(0, 64), [session.memory.fd])

    return leaks_none(t, process.fds, "a ring's size with a descriptor", uninvited)


@DEVICE.must("vhost.fds-many", _COMMUNICATION, Severity.HIGH)
def fds_many(t: Tester) -> str:
    """Descriptors beyond the eight that a message may have are closed."""
    process = Process(t)
    unsound = Refusals(t, start=False)

    def many() -> None:
        session = unsound.session
        session.peer.refusal(SET_MEM_TABLE, table([region_at(0)]), [session.memory.fd] * SCM_MAX_FD)

    return leaks_none(t, process.fds, f"{SCM_MAX_FD} descriptors", many, 4)
