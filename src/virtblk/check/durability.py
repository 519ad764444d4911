"""Checks of what outlives a device (virtio 1.2, 5.2.6.2): it is killed, started again, and asked for what was written.

They need --exec. SIGKILL takes what a device holds in its own process, not what the system holds for it (the page
cache), so a loss is certain to be one, and a PASS says that data survives the death of the process, not of the machine.
A disk that forgets everything even when its device ends in peace, such as one in memory, is not checked.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Final

from virtblk.check.blk_request import filled, pattern, unless_read_only
from virtblk.check.requirement import DEVICE, Failed, Severity, Skipped
from virtblk.check.runner import Tester
from virtblk.check.session import Session
from virtblk.errors import OpenError
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.vhost_user import FrontendRequest

_FLUSH: Final = (blk.VIRTIO_BLK_F_FLUSH,)
_WCE: Final = (blk.VIRTIO_BLK_F_CONFIG_WCE,)
SURVIVED: Final = "it survived the death of the process"


def _restart(t: Tester, signo: int, how: str) -> None:
    t.target.stop(signo)
    try:
        t.target.start()
    except OpenError as error:
        raise Failed(f"after {how} it does not start again: {error.strerror}") from None


def unless_forgetful(t: Tester) -> None:
    """Skipped where there is no command to start the device again, or its disk goes with it even in peace."""
    unless_read_only(t)
    if t.target.command is None:
        raise Skipped("it takes --exec, to kill the device and start it again")
    if t.target.keeps_data is None:
        session = t.session()
        first, data = filled(t, session, t.block_sectors, 71)
        if t.facts.offers(blk.VIRTIO_BLK_F_FLUSH):
            session.send(blk.VIRTIO_BLK_T_FLUSH).ok()
        session.close()
        _restart(t, signal.SIGTERM, "SIGTERM")
        with t.session() as after:
            t.target.keeps_data = after.read(first, t.block_sectors) == data
    if not t.target.keeps_data:
        raise Skipped("the disk does not outlive its process even when that is told to end: there is nothing to lose")


def _survives(t: Tester, session: Session, seed: int, then: Callable[[], object]) -> str:
    """Write, do what makes it durable, kill the device in the middle of the session, and read what is left."""
    sectors = t.lines_up(8)
    first = t.scratch_sector(sectors)
    data = pattern(sectors, seed)
    session.write(first, data)
    then()
    _restart(t, signal.SIGKILL, "SIGKILL")
    session.close()
    with t.session() as after:
        found = after.read(first, sectors)
    for at in range(0, len(data), 512):
        if found[at : at + 512] != data[at : at + 512]:
            was, now = data[at : at + 8].hex(" "), found[at : at + 8].hex(" ")
            raise Failed(f"sector {first + at // 512} was written with {was} ..., and reads {now} ... after SIGKILL")
    return SURVIVED


@DEVICE.must("blk.durable-without-flush", "5.2.6.2", Severity.CRITICAL, features=_FLUSH, scratch=True)
def durable_without_flush(t: Tester) -> str:
    """FLUSH offered, neither it nor CONFIG_WCE negotiated: a write is durable at completion."""
    unless_forgetful(t)
    return _survives(t, t.session(without=(*_FLUSH, *_WCE)), 73, lambda: None)


@DEVICE.must("blk.durable-write-through", "5.2.6.2", Severity.CRITICAL, features=(*_FLUSH, *_WCE), scratch=True)
def durable_write_through(t: Tester) -> str:
    """CONFIG_WCE negotiated, writeback 0 throughout: a write is durable at completion."""
    unless_forgetful(t)
    session = t.session()
    peer = session.peer
    peer.tell(FrontendRequest.VHOST_USER_SET_CONFIG, peer.config_message(blk.BLK_CONFIG_WRITEBACK, b"\0"))
    return _survives(t, session, 79, lambda: None)


@DEVICE.must("blk.durable-after-flush", "5.2.6.2", Severity.CRITICAL, features=_FLUSH, scratch=True)
def durable_after_flush(t: Tester) -> str:
    """Writes that had completed before a flush was sent are durable when it completes."""
    unless_forgetful(t)
    session = t.session()
    return _survives(t, session, 83, lambda: session.send(blk.VIRTIO_BLK_T_FLUSH).ok())
