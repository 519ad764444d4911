"""A device behind a listening socket, and guests who misuse one of their two rings (attacker G: ring memory only).

What an `Intruder` prepares is offered to the device all at once by `attack`, which waits for the answer and then
demands what the architecture's table of trust promises: the request is answered, or that ring is broken; no byte of
guest memory changed but used rings and device-writable buffers; the device's other ring works; the session goes on.
`RingDoor.check` adds that the disk holds what it should, and that the next client is served.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from device.guest import FEATURES, GUEST, Guest, Queue, header
from naive.ring import INDIRECT, Buffer
from naive.virtio_blk import OK, OUT
from virtblk.device.virtio_blk import VirtioBlkDevice
from virtblk.mem.guest_memory import GuestMemory
from virtblk.names import parse_name
from virtblk.storage.open import open_storage
from virtblk.vhost_user.backend import Backend
from virtblk.vhost_user.connection import Connection
from virtblk.vhost_user.listener import Listener
from waiting import PATIENCE, wait_until

CAPACITY = 256  # sectors
SIZE = CAPACITY * 512
#: The last sector is where the honest ring and the next client work.
HONEST = CAPACITY - 1

Desc = tuple[int, int, int, int]  # addr, len, flags, next


class Verdict(NamedTuple):
    """How it ended: why the ring is broken, or None; and the used elements (id, length) until then."""

    broken: str | None
    used: list[tuple[int, int]]


class _Session(Backend):
    """Says when it is over."""

    def __init__(self, connection: Connection, device: VirtioBlkDevice, memory: GuestMemory) -> None:
        super().__init__(connection, device, memory)
        self.device_made = device
        self.over = threading.Event()

    def run(self, stop_fd: int) -> str:
        try:
            return super().run(stop_fd)
        finally:
            self.over.set()


class _Visit:
    """What a Guest takes for its LocalDevice."""

    def __init__(self, path: str, sessions: list[_Session]) -> None:
        self.client = Connection.connect(path, PATIENCE)
        wait_until(lambda: sessions)
        self._session = sessions.pop()
        self.device = self._session.device_made

    def close(self) -> None:
        assert self._session.over.wait(PATIENCE), "the session did not end with its client"


class Intruder(Guest):
    """A guest through the door. Its rings do not run before `attack`."""

    def __init__(
        self,
        door: RingDoor,
        *,
        start: bool = False,
        features: int = FEATURES,
        read_only: bool = False,
        **options: Any,
    ) -> None:
        self.door, self.read_only = door, read_only
        options.setdefault("size", 1 << 20)
        visit: Any = _Visit(door.path, door.sessions)
        super().__init__(door.storage, queues=2, features=features, start=start, local=visit, **options)

    @property
    def bad(self) -> Queue:
        return self.queues[0]

    def table(self, *descs: Desc) -> int:
        """An indirect table; its guest address."""
        at = self.alloc(16 * len(descs), 16)
        for index, desc in enumerate(descs):
            self.bad.ring.write_desc(at, index, *desc)
        return at

    def describe(self, *descs: Desc) -> None:
        """Write descriptors from 0 on, and offer none."""
        for index, desc in enumerate(descs):
            self.bad.ring.write_desc(self.bad.ring.desc, index, *desc)

    def offer(self, *descs: Desc, head: int = 0, moved: int = 1) -> None:
        """Write descriptors from 0 on and make `head` available, moving the index by any number."""
        queue, ring = self.bad, self.bad.ring
        self.describe(*descs)
        ring.set_avail_head(queue.driver.idx, head)
        queue.driver.idx += moved
        ring.set_avail_idx(queue.driver.idx)

    def offer_indirect(self, *descs: Desc) -> None:
        """One descriptor that names a table."""
        self.offer((self.table(*descs), 16 * len(descs), INDIRECT, 0))

    def offer_chain(self, buffers: Sequence[Buffer]) -> None:
        """As any driver would, in free descriptors."""
        self.bad.tokens += 1
        assert self.bad.driver.add(buffers, self.bad.tokens), "the ring is full"

    def attack(self, writable: Sequence[Buffer] = (), *, answers: int = 1) -> Verdict:
        """Let the device have it: until the ring is broken, or that many answers came."""
        before = self._snapshot()
        for queue in self.queues:
            queue.start()
        start, ring = self.bad.base, self.bad.ring

        def answered() -> int:
            return (ring.used_idx - start) % 65536

        wait_until(lambda: answered() >= answers or self.bad.broke(0))
        broken = self.device.queues[0].broken
        if broken is None:
            assert answered() == answers
        self.unharmed(before, writable)
        return Verdict(broken, [ring.used_elem(start + n) for n in range(answered())])

    def unharmed(self, before: np.ndarray[Any, Any], writable: Sequence[Buffer]) -> None:
        """Nothing changed that may not change, and everything else works."""
        may = np.zeros(self.size, bool)
        for ring in (queue.ring for queue in self.queues):
            at = self._offset(ring.used)
            may[at : at + 6 + 8 * ring.num] = True
        for buffer in writable:
            at = self._offset(buffer.address)
            may[at : at + buffer.length] = True
        changed = np.flatnonzero((self._snapshot() != before) & ~may)
        assert changed.size == 0, f"guest memory changed at offset {changed[:8]} ..."
        assert self.front.get_queue_num() == 2
        honest = self.queues[1]
        if self.read_only:
            assert honest.read(0, 512) == self.door.content[:512]
        else:
            assert honest.write(HONEST, b"h" * 512) == OK
            assert honest.read(HONEST, 512) == b"h" * 512

    def _snapshot(self) -> np.ndarray[Any, Any]:
        return np.frombuffer(self.load(GUEST, self.size), np.uint8)

    def _offset(self, address: int) -> int:
        """In guest memory, of a guest address or (rings) a user address."""
        return (address - self.regions[0].user_addr) if address >= self.regions[0].user_addr else address - GUEST


class RingDoor:
    """A memory disk with a listener; `content` is what the disk must hold, the honest sector aside."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.storage = open_storage(parse_name(f"ram:{SIZE}"))
        self.sessions: list[_Session] = []
        self.content = bytearray()
        self.restore()
        VirtioBlkDevice(self.storage, GuestMemory())  # compiles, which takes longer than a client waits
        self._stop_fd = os.eventfd(0)
        self._listener = Listener(path)
        self._thread = threading.Thread(target=self._listener.serve, args=(self._session, self._stop_fd))
        self._thread.start()
        self.check()  # what is made once is made now

    def _session(self, connection: Connection) -> _Session:
        memory = GuestMemory()
        session = _Session(connection, VirtioBlkDevice(self.storage, memory, queues=2, serial="door"), memory)
        self.sessions.append(session)
        return session

    def restore(self) -> None:
        """A pattern without zeroes, in which every sector is another one."""
        self.content[:] = b"".join(bytes(1 + (7 * sector + i) % 255 for i in range(512)) for sector in range(CAPACITY))
        ctypes.memmove(self.storage.address, bytes(self.content), SIZE)

    def check(self) -> None:
        """After an intruder: the disk, and the next client."""
        held = ctypes.string_at(self.storage.address, SIZE)
        end = HONEST * 512
        wrong = [at // 512 for at in range(0, end, 512) if held[at : at + 512] != self.content[at : at + 512]]
        assert wrong == [], "sectors that changed, or did not"
        with Intruder(self, start=True) as client:
            assert client.queue.read(0, 512) == self.content[:512]
            for queue in client.queues:
                assert queue.request(header(OUT, HONEST) + b"n" * 512, 1).status == OK
        self.restore()

    def close(self) -> None:
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._listener.close()
        os.close(self._stop_fd)
        self.storage.close()

    def __enter__(self) -> RingDoor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


Prepare = Callable[[Intruder], Any]
