"""The virtio-blk driver over vhost-user: probe, config, attributes, removal (Linux: virtblk_probe, virtblk_remove).

Control context. `VirtioBlk` negotiates, lays out queues and arena, starts the rings, and watches the peer; submitters
run the kernels of `submit_bio` on the `kernel_view` of the virtqueue that they are mapped to (`map_queues`).
"""

from __future__ import annotations

import errno
import logging
import select
import threading
from collections.abc import Set
from dataclasses import dataclass, field, replace
from os import close as close_fd
from os import eventfd, eventfd_write
from typing import Any, Final

import numpy as np

from virtblk.block.bio import REQ_OP_GET_ID
from virtblk.block.elevator import elevator_switch
from virtblk.block.request import ELEVATOR_NOOP
from virtblk.driver.auto import blk_auto_begin, blk_auto_end
from virtblk.driver.completion import completion_loop, virtblk_break
from virtblk.driver.map_queues import MQ_PATHS, map_queue, mapped_submitters
from virtblk.driver.naming import IndexAllocator, virtblk_name_format
from virtblk.driver.queue import QueueLimits, QueueSetup, example_queue, link_queues
from virtblk.driver.submit_bio import do_bio
from virtblk.driver.sysfs import Sysfs, queue_lock
from virtblk.driver.virtblk_req import PATH_BIO, PATH_MQ, PATH_REQUEST, BothPaths, RequestPathOnly
from virtblk.errors import DeviceError, OpenError, UsageError
from virtblk.jit.atomics import store_release_i64
from virtblk.jit.libc import clock_ns
from virtblk.jit.threads import end_thread, start_thread
from virtblk.jit.warmup import ensure
from virtblk.mem.shm import Arena
from virtblk.status import BROKEN_TEXT
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.vhost_user import VHOST_USER_F_PROTOCOL_FEATURES, ProtocolFeature
from virtblk.uapi.virtio_config import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.frontend import Frontend, Region, RequestRefused
from virtblk.vhost_user.message import ProtocolError
from virtblk.virtio.virtio_ring_split import virtqueue_notify

log = logging.getLogger("virtblk.driver")

DEFAULT_QUEUE_SIZE: Final = 128
#: A request needs a descriptor each for header, data and status, and no chain may be longer than the ring (2.7.5.3.1).
MIN_QUEUE_SIZE: Final = 4
#: Bytes of one request at most: what devices of today take in one piece, whatever their segment limits allow.
MAX_REQUEST_BYTES: Final = 1 << 20
#: Sectors that a discard or write zeroes names at most where the device sets no limit: as its 32 bits hold, in blocks.
_NO_SECTOR_LIMIT: Final = (1 << 32) - 128
#: Linux's PART_BITS: minors of a disk are 2**4 apart.
PART_BITS: Final = 4
#: Seconds that a polite end of the session may take before the socket is simply closed.
CLOSE_TIMEOUT: Final = 2.0
#: Seconds for a thread of ours to see its stop word.
THREAD_TIMEOUT: Final = 10.0

#: I/O paths by name; the number is the queue's `path`.
PATHS: Final = {"request": PATH_REQUEST, "bio": PATH_BIO, "mq": PATH_MQ, "auto": PATH_MQ}
#: vhost-user numbers rings in eight bits (VHOST_USER_VRING_IDX_MASK).
MAX_QUEUES: Final = 256

DRIVER_FEATURES: Final = frozenset(
    {
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VHOST_USER_F_PROTOCOL_FEATURES,
        blk.VIRTIO_BLK_F_SIZE_MAX,
        blk.VIRTIO_BLK_F_SEG_MAX,
        blk.VIRTIO_BLK_F_RO,
        blk.VIRTIO_BLK_F_BLK_SIZE,
        blk.VIRTIO_BLK_F_FLUSH,
        blk.VIRTIO_BLK_F_TOPOLOGY,
        blk.VIRTIO_BLK_F_CONFIG_WCE,
        blk.VIRTIO_BLK_F_MQ,
        blk.VIRTIO_BLK_F_DISCARD,
        blk.VIRTIO_BLK_F_WRITE_ZEROES,
    }
)
DRIVER_PROTOCOL_FEATURES: Final = (
    1 << ProtocolFeature.VHOST_USER_PROTOCOL_F_MQ
    | 1 << ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK
    | 1 << ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIG
    | 1 << ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
)

_indices = IndexAllocator()
_abandoned: list[VirtioBlk] = []


@dataclass(frozen=True)
class Topology:
    """Block sizes and preferred I/O sizes, in bytes."""

    block_size: int
    physical_block_size: int
    alignment_offset: int
    min_io_size: int
    opt_io_size: int


@dataclass(frozen=True)
class DriverOptions:
    """How a session is to be set up. `poll_us` None: poll only, no interrupts, no completion thread."""

    queues: int = 1  # virtqueues to use
    poll_queues: int = 0  # the last of them that are polled only, whatever `poll_us` is (Linux: virtio_blk.poll_queues)
    queue_size: int | None = None
    timeout: float = 30.0
    poll_us: int | None = 20
    read_only: bool = False
    submitters: int = 1
    bios_each: int = 1
    segments_each: int = 1
    data_bytes: int = 0
    crowded: bool = False  # more submitters than cores
    cores: int = 1 << 30  # for submitters to run on
    path: str = "bio"  # or another of PATHS; set_path changes it
    paths: BothPaths | RequestPathOnly = field(default_factory=BothPaths)  # which paths are compiled in
    without: Set[int] = frozenset()  # feature bits to refuse, for tests and comparisons


def compile_driver() -> None:
    """Compile what a session runs, or load it from the cache: before the peer waits and threads start."""
    queue = example_queue()
    ensure(do_bio, *[0] * 7)
    ensure(virtblk_break, queue, 0)
    ensure(completion_loop, queue, 0)
    ensure(virtqueue_notify, queue.vq)
    ensure(blk_auto_begin, queue)
    ensure(blk_auto_end, queue)


class VirtioBlk:
    """One probed device with its virtqueues running. `close` ends the session and frees everything.

    Raises OpenError where no session comes about, UsageError for options that cannot work with this device.
    """

    def __init__(self, conn: Connection, title: str, options: DriverOptions) -> None:
        self.title = title
        self.options = options
        self._conn = conn
        self._arena: Arena | None = None
        self.queues: list[QueueSetup] = []
        self._path = "bio" if isinstance(options.paths, BothPaths) else "request"
        self.elevators = {"request": ELEVATOR_NOOP, "mq": ELEVATOR_NOOP}  # of the paths that are told which
        self._completion: list[tuple[threading.Thread, QueueSetup]] = []
        self._monitor: threading.Thread | None = None
        self._monitor_fd = -1
        self._control = threading.Lock()  # of the socket, once the session runs
        self._closed = False
        self._started = 0  # rings that the device was told of
        self.abandoned = False  # a thread did not come back: memory and descriptors stay
        self.index = _indices.get()
        self.name = virtblk_name_format("vd", self.index)
        self.first_minor = self.index << PART_BITS
        self.front = Frontend(conn, options.timeout)
        try:
            self._probe()
        except (ConnectionClosed, TimeoutError, ProtocolError, RequestRefused) as error:
            self.close()
            code = errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.EPROTO
            raise OpenError(code, f"{title}: {_text(error)}") from error
        except DeviceError as error:
            self.close()
            raise OpenError(error.errno, error.strerror) from error
        except BaseException:
            self.close()
            raise

    # Probe: the steps of virtblk_probe, in its order.

    def _probe(self) -> None:
        front = self.front
        self.device_features = front.get_features()
        self._check_features()
        self.protocol_features_offered = front.get_protocol_features()
        self.protocol_features = self.protocol_features_offered & DRIVER_PROTOCOL_FEATURES
        if not self._has_protocol(ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIG):
            raise self._refuse("offers no VHOST_USER_PROTOCOL_F_CONFIG, so it has no blk config to read")
        front.set_protocol_features(self.protocol_features)
        front.set_owner()
        queue_num = front.get_queue_num() if self._has_protocol(ProtocolFeature.VHOST_USER_PROTOCOL_F_MQ) else 1
        self.hinted = bool(self.device_features >> blk.VIRTBLK_F_SORT & 1)  # seen, not accepted: it changes no request
        self.features = self.device_features & sum(1 << bit for bit in DRIVER_FEATURES - self.options.without)
        self._read_config()
        self.num_queues = min(queue_num, self.config_num_queues)
        if self.num_queues < 1:
            told = f"num_queues {self.config_num_queues}, VHOST_USER_GET_QUEUE_NUM {queue_num}"
            raise self._refuse(f"has 0 queues ({told})")
        self._check_queues()
        front.set_features(self.features)
        self._init_vqs()
        self.serial = self._get_id()

    def _check_features(self) -> None:
        if not self.device_features >> VHOST_USER_F_PROTOCOL_FEATURES & 1:
            raise self._refuse("offers no protocol features, so it has no blk config to read")
        if not self.device_features >> VIRTIO_F_VERSION_1 & 1:
            raise self._refuse("does not offer VIRTIO_F_VERSION_1; legacy devices are not supported")

    def _check_queues(self) -> None:
        asked, polled, most = self.options.queues, self.options.poll_queues, min(self.num_queues, MAX_QUEUES)
        if not 1 <= asked <= most:
            count = f"{self.num_queues} virtqueue{'' if self.num_queues == 1 else 's'}"
            why = "" if self.has(blk.VIRTIO_BLK_F_MQ) else " (it does not offer VIRTIO_BLK_F_MQ)"
            raise UsageError(f"queues {asked}: {self.title} has {count}{why}; give {'1 to ' * (most > 1)}{most}")
        if not 0 <= polled <= asked:
            raise UsageError(f"poll_queues {polled}: give 0 to {asked}, the number of queues")

    def _read_config(self) -> None:
        """Read the whole config once, from offset 0 (QEMU and SPDK ignore offsets), and check what we build on."""
        raw = b""
        for size in (blk.BLK_CONFIG_SIZE_1_1, blk.BLK_CONFIG.itemsize, 24):
            try:
                raw = self.front.get_config(size)
                break
            except RequestRefused:
                continue
        else:
            raise self._refuse("has no blk config: VHOST_USER_GET_CONFIG was refused")
        config = np.frombuffer(raw.ljust(blk.BLK_CONFIG_SIZE_1_1, b"\0"), blk.BLK_CONFIG_1_1, 1)[0]
        self.config_bytes = raw
        self.capacity = int(config["capacity"])
        if self.capacity >= 1 << 54:
            raise self._refuse(f"says that it has {self.capacity} sectors, which is no disk")
        block = int(config["blk_size"]) if self.has(blk.VIRTIO_BLK_F_BLK_SIZE) else blk.SECTOR_SIZE
        if block < blk.SECTOR_SIZE or block & (block - 1) or block > 1 << 16:
            raise self._refuse(f"says that its block size is {block}, which is no power of two from 512 to 65536")
        self.size = self.capacity << blk.SECTOR_SHIFT
        if self.size < block:
            raise self._refuse(f"is smaller ({self.size} bytes) than one block of {block}")
        topology = self.has(blk.VIRTIO_BLK_F_TOPOLOGY)
        exponent = int(config["physical_block_exp"]) if topology else 0
        if exponent > 16:
            raise self._refuse(f"says that its physical block exponent is {exponent}")
        self.topology = Topology(
            block,
            block << exponent,
            int(config["alignment_offset"]) * block if topology else 0,
            int(config["min_io_size"]) * block if topology else block,
            int(config["opt_io_size"]) * block if topology else 0,
        )
        self.size_max = int(config["size_max"]) if self.has(blk.VIRTIO_BLK_F_SIZE_MAX) else 0
        # As Linux: a device that says 0 gets one segment.
        self.seg_max = max(1, int(config["seg_max"])) if self.has(blk.VIRTIO_BLK_F_SEG_MAX) else 1
        told = self.has(blk.VIRTIO_BLK_F_MQ) and len(raw) >= blk.BLK_CONFIG.itemsize
        self.config_num_queues = int(config["num_queues"]) if told else 1
        if self.has(blk.VIRTIO_BLK_F_CONFIG_WCE):
            self.writeback = bool(config["writeback"])
        else:
            self.writeback = self.has(blk.VIRTIO_BLK_F_FLUSH)
        # As Linux: 0 is no limit of its own.
        self.max_discard_sectors = int(config["max_discard_sectors"]) or _NO_SECTOR_LIMIT
        self.max_write_zeroes_sectors = int(config["max_write_zeroes_sectors"]) or _NO_SECTOR_LIMIT
        self.device_read_only = self.has(blk.VIRTIO_BLK_F_RO)
        self.read_only = self.options.read_only or self.device_read_only

    def _queue_limits(self) -> QueueLimits:
        options = self.options
        num = DEFAULT_QUEUE_SIZE if options.queue_size is None else options.queue_size
        if num < MIN_QUEUE_SIZE or num > 32768 or num & (num - 1):
            raise UsageError(f"queue size {num}: give a power of two from {MIN_QUEUE_SIZE} to 32768")
        segs = min(self.seg_max, num - 2, MAX_REQUEST_BYTES // blk.SECTOR_SIZE)
        # size_max 0 means no limit (qemu-storage-daemon); smaller than a sector means that sectors go in pieces.
        seg_len = min(self.size_max or MAX_REQUEST_BYTES, MAX_REQUEST_BYTES)
        if seg_len >= blk.SECTOR_SIZE:
            seg_len -= seg_len % blk.SECTOR_SIZE
        most = min(MAX_REQUEST_BYTES, segs * seg_len)
        most -= most % self.topology.block_size
        if most == 0:
            raise self._refuse(f"takes {segs} segments of {seg_len} bytes, less than one block")
        return QueueLimits(
            num=num,
            max_segs=segs,
            max_seg_len=seg_len,
            max_bytes=most,
            event_idx=self.has(VIRTIO_RING_F_EVENT_IDX),
            indirect=self.has(VIRTIO_RING_F_INDIRECT_DESC),
            can_flush=self.has(blk.VIRTIO_BLK_F_FLUSH),
            submitters=options.submitters,
            bios_each=options.bios_each,
            segments_each=options.segments_each,
            data_bytes=options.data_bytes + 4096,
        )

    def _limits_of_queues(self) -> list[QueueLimits]:
        """One per virtqueue. The first has room for all submitters, since some paths have it alone, and has the data.

        A virtqueue that no submitter is mapped to runs all the same, empty.
        """
        limits = self._queue_limits()
        submitters, queues = self.options.submitters, self.options.queues
        counts = [max(1, len(mapped_submitters(index, submitters, queues))) for index in range(1, queues)]
        return [limits, *(replace(limits, submitters=count, data_bytes=0) for count in counts)]

    def _init_vqs(self) -> None:
        """Lay out arena and rings, compile what will run on them, share the memory, start the rings."""
        options = self.options
        of_queues = self._limits_of_queues()
        wanted = sum(limits.arena_bytes for limits in of_queues)
        try:
            arena = self._arena = Arena(wanted)
        except OSError as error:
            raise OpenError(error.errno, f"{self.title}: {error.strerror} ({wanted} bytes wanted)") from error
        for index, limits in enumerate(of_queues):
            queue = QueueSetup(
                arena,
                limits,
                timeout_ns=int(options.timeout * 1e9),
                poll_ns=-1 if self.is_polled(index) else (options.poll_us or 0) * 1000,
                crowded=options.crowded,
                paths=options.paths,
            )
            self.queues.append(queue)
            auto = queue.kernel_view.auto[0]
            auto["hinted"] = auto["elevator"] = self.hinted
        link_queues(self.queues)
        compile_driver()
        if isinstance(options.paths, BothPaths):
            self.set_path(options.path)
        front = self.front
        region = Region(arena.address, arena.length, arena.address, 0, arena.fd)
        if self._has_protocol(ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS):
            front.add_mem_reg(region)
        else:
            front.set_mem_table([region])
        self._monitor_fd = eventfd(0)
        self._monitor = start_thread(self._watch, name=f"{self.name}-monitor")
        for index, queue in enumerate(self.queues):
            if not self.is_polled(index):
                name = f"{self.name}-completion" if len(self.queues) == 1 else f"{self.name}-req.{index}"
                thread = start_thread(completion_loop, queue.kernel_view, queue.completion_reaper, name=name)
                self._completion.append((thread, queue))
            ring = queue.ring
            call_fd = queue.call_fd  # also when polling: SPDK and others insist on one
            front.start_vring(index, ring.num, 0, ring.desc, ring.avail, ring.used, queue.kick_fd, call_fd)
            # Older text of the specification: a ring starts with its first kick. An empty kick does no harm.
            virtqueue_notify(ring.vring)
            self._started += 1

    def _get_id(self) -> str:
        """The serial by GET_ID; empty where the device has none or will not say."""
        address = self.data + self.options.data_bytes
        code = do_bio(self.queues[0].handle, 0, REQ_OP_GET_ID, 0, 0, address, blk.VIRTIO_BLK_ID_BYTES)
        if code < 0:
            raise self.broken_error()
        if code > 0:
            return ""
        raw = self.arena.array(address, blk.VIRTIO_BLK_ID_BYTES).tobytes()
        text = raw.split(b"\0")[0].decode("ascii", "replace").strip()
        return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)  # it gets printed

    # While it runs.

    def has(self, bit: int) -> bool:
        """Whether feature `bit` was negotiated (before SET_FEATURES: will be)."""
        return bool(self.features >> bit & 1)

    def _has_protocol(self, feature: ProtocolFeature) -> bool:
        return bool(self.protocol_features >> feature & 1)

    def _refuse(self, text: str) -> OpenError:
        return OpenError(errno.EPROTO, f"{self.title} {text}")

    def peer_pid(self) -> int | None:
        """Process id of who listens on the socket, or None."""
        return self._conn.peer_pid()

    @property
    def arena(self) -> Arena:
        """The memory that the device sees."""
        assert self._arena is not None
        return self._arena

    @property
    def queue(self) -> QueueSetup | None:
        """The first virtqueue, or None before there is one."""
        return self.queues[0] if self.queues else None

    @property
    def view(self) -> Any:
        """What the kernels take (driver.virtblk_req.VirtblkQueue), of the first virtqueue."""
        return self.queues[0].kernel_view

    @property
    def views(self) -> list[Any]:
        """The same of every virtqueue."""
        return [queue.kernel_view for queue in self.queues]

    @property
    def data(self) -> int:
        """Address of the data memory."""
        return self.queues[0].data

    def is_polled(self, index: int) -> bool:
        """Whether virtqueue `index` has no interrupts: who waits for it polls."""
        return self.options.poll_us is None or index >= self.options.queues - self.options.poll_queues

    def used_queues(self, path: str) -> int:
        """How many virtqueues bios use on `path`: all, or the first alone."""
        return len(self.queues) if path in MQ_PATHS else 1

    def mapped_submitters(self, index: int) -> range:
        """The submitters that use virtqueue `index` on a path that uses all of them."""
        return mapped_submitters(index, self.options.submitters, len(self.queues))

    def map_submitter(self, submitter: int) -> tuple[QueueSetup, int]:
        """The virtqueue that a submitter uses on the path that is set, and its number there."""
        place = map_queue(submitter, self.used_queues(self._path))
        return self.queues[place.queue], place.number

    @property
    def error(self) -> int:
        """0, or the errno that the queues were broken with."""
        return next((code for d in self.views if (code := int(d.queue[0]["error"]))), 0)

    def broken_error(self) -> DeviceError:
        """The exception that says why the queues are over."""
        code = self.error
        text = BROKEN_TEXT.get(code, f"the queue is over (errno {code})")
        if code == errno.ETIMEDOUT:
            text += f" ({self.options.timeout:g} s)"
        for queue in self.queues:
            if queue.ring.broken:
                text += f": {queue.ring.broken}"
                break
        return DeviceError(code, f"{self.title}: {text}")

    @property
    def path(self) -> str:
        """The path that bios take: one of PATHS."""
        return self._path

    def set_path(self, path: str) -> None:
        """Let bios take path `request`, `bio`, `mq` or `auto` from now on, with the scheduler that was set for it.

        `auto` goes on with what it had found out when bios took it last.

        For whole runs: nothing is submitted meanwhile. Raises UsageError for another name.
        """
        if path not in PATHS:
            raise UsageError(f"path {path!r}: give one of {', '.join(PATHS)}")
        if path != "request" and not isinstance(self.options.paths, BothPaths):
            raise UsageError(f"path {path!r}: this queue was built without the {path} path")
        turns = path != self._path and "auto" in (path, self._path)
        turn = blk_auto_begin if path == "auto" else blk_auto_end
        polled = min(self.used_queues(path), self.options.submitters)
        crowded = 2 if self.options.crowded and polled > self.options.cores else int(self.options.crowded)
        for d in self.views:
            if turns:
                with queue_lock(d):
                    turn(d)
            d.queue[0]["path"] = PATHS[path]
            d.queue[0]["crowded"] = crowded
        self._path = path
        if path in self.elevators:
            self.switch_elevator(self.elevators[path])

    def switch_elevator(self, elevator: int) -> None:
        """Set the scheduler of the path that bios take, which each virtqueue has one of; what the old one holds is
        dispatched in its order."""
        for d in self.views:
            if d.q.state[0]["elevator"] == elevator:
                continue
            ensure(elevator_switch, d.q, ELEVATOR_NOOP, 0)  # before anybody waits for the lock
            with queue_lock(d):
                elevator_switch(d.q, elevator, clock_ns())

    @property
    def sysfs(self) -> Sysfs:
        """The attributes by their sysfs names."""
        return Sysfs(self)

    # Counters over all virtqueues.

    def _sum(self, field: str) -> int:
        return sum(int(d.submitters[field].sum()) for d in self.views)

    @property
    def kicks(self) -> int:
        """Notifications of the device so far."""
        return self._sum("kicks")

    @property
    def ring_full_waits(self) -> int:
        """How often somebody found a ring full so far."""
        return self._sum("ring_full_waits")

    @property
    def interrupts(self) -> int:
        """Interrupts that were handled so far."""
        return sum(int(d.queue[0]["interrupts"]) for d in self.views)

    @property
    def merges(self) -> int:
        """Bios, and requests, that joined another request so far."""
        of_requests = sum(int(d.q.state[0][field]) for d in self.views for field in ("merges", "rq_merges"))
        return self._sum("merges") + of_requests

    def set_writeback(self, writeback: bool) -> None:
        """Switch the device's cache mode (5.2.6.1), and see that it did. Raises UsageError, OSError, DeviceError."""
        if not self.has(blk.VIRTIO_BLK_F_CONFIG_WCE):
            raise UsageError(f"{self.title}: cache_type is fixed on this device: it does not offer CONFIG_WCE")
        try:
            with self._control:
                self.front.set_config(blk.BLK_CONFIG_WRITEBACK, bytes([writeback]))
                told = self.front.get_config(len(self.config_bytes))[blk.BLK_CONFIG_WRITEBACK]
        except RequestRefused as error:
            raise OSError(errno.EIO, f"{self.title}: the device refused to change its cache mode") from error
        except (ConnectionClosed, TimeoutError, ProtocolError) as error:
            code = errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.ENODEV
            self.break_queue(code)
            raise self.broken_error() from error
        self.writeback = bool(told)
        if self.writeback != writeback:
            raise OSError(errno.EIO, f"{self.title}: the device kept its cache mode")

    def break_queue(self, code: int) -> None:
        """End all queues with errno `code` and wake everybody who waits."""
        virtblk_break(self.view, code)

    def _watch(self) -> None:
        """Monitor thread: a peer that hangs up ends the queue. The socket is only looked at, never read."""
        poller = select.poll()
        poller.register(self._conn.fileno(), select.POLLRDHUP)
        poller.register(self._monitor_fd, select.POLLIN)
        for fd, _ in poller.poll():
            if fd != self._monitor_fd:
                self.break_queue(errno.ENODEV)

    # The end.

    def stop_completion(self) -> None:
        """End the completion threads, after which no interrupt is handled. Harmless when repeated."""
        for _, queue in self._completion:
            store_release_i64(int(queue.kernel_view.queue[0]["stop"]), 1)
            eventfd_write(queue.stop_fd, 1)
        for thread, queue in self._completion:
            if not end_thread(thread, int(queue.kernel_view.queue[0]["done"]), THREAD_TIMEOUT):
                self.abandoned = True
        self._completion = []

    def close(self) -> None:
        """Stop the rings, tell the device, free everything. No submitter runs any more. Never raises, never hangs."""
        if self._closed:
            return
        self._closed = True
        if self.queues:
            gone = self.error != 0
            if self._monitor is not None:
                eventfd_write(self._monitor_fd, 1)
                self._monitor.join()
            if self._monitor_fd >= 0:
                close_fd(self._monitor_fd)
            if self._arena is not None:
                self.break_queue(errno.ESHUTDOWN)
            self.stop_completion()
            if not gone:
                self._stop_vrings()
        self._conn.close()
        _indices.put(self.index)
        if self.abandoned:  # a thread still runs on this memory: better a leak than a use after free
            log.error("%s: a thread is stuck in a call to the device; its memory is not freed", self.title)
            _abandoned.append(self)
            return
        for queue in self.queues:
            queue.close()
        if self._arena is not None:
            self._arena.close()

    def _stop_vrings(self) -> None:
        """GET_VRING_BASE drains a ring; a device that will not answer loses the connection instead."""
        self.front.timeout = min(self.options.timeout, CLOSE_TIMEOUT)
        try:
            for index in range(self._started):
                self.front.get_vring_base(index)
        except (ConnectionClosed, TimeoutError, ProtocolError, RequestRefused) as error:
            log.warning("%s: stopping the ring: %s", self.title, _text(error))


def _text(error: BaseException) -> str:
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)
