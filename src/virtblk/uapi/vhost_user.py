"""The numbers of the vhost-user protocol: request ids, header flags, feature bits, payload layouts, names.

Answers to QEMU's docs/interop/vhost-user.rst ("Message Specification", "Protocol features", "Front-end message
types", "Back-end message types") and to `struct vhost_vring_*` of linux/vhost.h. Nothing here does anything:
`vhost_user.message` packs and unpacks, `virtblk info` prints the names.

The specification says "machine native byte order"; the machines that virtblk runs on are little-endian, and saying
so in every format (`<`) also takes the padding rules of the C compiler out of play.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final


class FrontendRequest(IntEnum):
    """What the front end (the driver's side) asks; the ids share one number space, apart from `BackendRequest`."""

    VHOST_USER_GET_FEATURES = 1
    VHOST_USER_SET_FEATURES = 2
    VHOST_USER_SET_OWNER = 3
    VHOST_USER_RESET_OWNER = 4  # deprecated: at most it disables the rings
    VHOST_USER_SET_MEM_TABLE = 5
    VHOST_USER_SET_LOG_BASE = 6
    VHOST_USER_SET_LOG_FD = 7
    VHOST_USER_SET_VRING_NUM = 8
    VHOST_USER_SET_VRING_ADDR = 9
    VHOST_USER_SET_VRING_BASE = 10
    VHOST_USER_GET_VRING_BASE = 11
    VHOST_USER_SET_VRING_KICK = 12
    VHOST_USER_SET_VRING_CALL = 13
    VHOST_USER_SET_VRING_ERR = 14
    VHOST_USER_GET_PROTOCOL_FEATURES = 15
    VHOST_USER_SET_PROTOCOL_FEATURES = 16
    VHOST_USER_GET_QUEUE_NUM = 17
    VHOST_USER_SET_VRING_ENABLE = 18
    VHOST_USER_SEND_RARP = 19
    VHOST_USER_NET_SET_MTU = 20
    VHOST_USER_SET_BACKEND_REQ_FD = 21
    VHOST_USER_IOTLB_MSG = 22
    VHOST_USER_SET_VRING_ENDIAN = 23
    VHOST_USER_GET_CONFIG = 24
    VHOST_USER_SET_CONFIG = 25
    VHOST_USER_CREATE_CRYPTO_SESSION = 26
    VHOST_USER_CLOSE_CRYPTO_SESSION = 27
    VHOST_USER_POSTCOPY_ADVISE = 28
    VHOST_USER_POSTCOPY_LISTEN = 29
    VHOST_USER_POSTCOPY_END = 30
    VHOST_USER_GET_INFLIGHT_FD = 31
    VHOST_USER_SET_INFLIGHT_FD = 32
    VHOST_USER_GPU_SET_SOCKET = 33
    VHOST_USER_RESET_DEVICE = 34
    VHOST_USER_VRING_KICK = 35
    VHOST_USER_GET_MAX_MEM_SLOTS = 36
    VHOST_USER_ADD_MEM_REG = 37
    VHOST_USER_REM_MEM_REG = 38
    VHOST_USER_SET_STATUS = 39
    VHOST_USER_GET_STATUS = 40
    VHOST_USER_GET_SHARED_OBJECT = 41
    VHOST_USER_SET_DEVICE_STATE_FD = 42
    VHOST_USER_CHECK_DEVICE_STATE = 43
    VHOST_USER_GET_SHMEM_CONFIG = 44
    VHOST_USER_SKIP_DRAIN = 45  # posted in 2026; here so that a peer's use of it is named in messages


class BackendRequest(IntEnum):
    """What the back end asks on the socket that it was given by VHOST_USER_SET_BACKEND_REQ_FD."""

    VHOST_USER_BACKEND_IOTLB_MSG = 1
    VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2
    VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG = 3
    VHOST_USER_BACKEND_VRING_CALL = 4
    VHOST_USER_BACKEND_VRING_ERR = 5
    VHOST_USER_BACKEND_SHARED_OBJECT_ADD = 6
    VHOST_USER_BACKEND_SHARED_OBJECT_REMOVE = 7
    VHOST_USER_BACKEND_SHARED_OBJECT_LOOKUP = 8
    VHOST_USER_BACKEND_SHMEM_MAP = 9
    VHOST_USER_BACKEND_SHMEM_UNMAP = 10


class ProtocolFeature(IntEnum):
    """Bit numbers in GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES; `1 << bit` is the mask."""

    VHOST_USER_PROTOCOL_F_MQ = 0
    VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1
    VHOST_USER_PROTOCOL_F_RARP = 2
    VHOST_USER_PROTOCOL_F_REPLY_ACK = 3
    VHOST_USER_PROTOCOL_F_MTU = 4
    VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5
    VHOST_USER_PROTOCOL_F_CROSS_ENDIAN = 6
    VHOST_USER_PROTOCOL_F_CRYPTO_SESSION = 7
    VHOST_USER_PROTOCOL_F_PAGEFAULT = 8
    VHOST_USER_PROTOCOL_F_CONFIG = 9
    VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD = 10
    VHOST_USER_PROTOCOL_F_HOST_NOTIFIER = 11
    VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12
    VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13
    VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS = 14
    VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15
    VHOST_USER_PROTOCOL_F_STATUS = 16
    VHOST_USER_PROTOCOL_F_XEN_MMAP = 17
    VHOST_USER_PROTOCOL_F_SHARED_OBJECT = 18
    VHOST_USER_PROTOCOL_F_DEVICE_STATE = 19
    VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT = 20
    VHOST_USER_PROTOCOL_F_GPA_ADDRESSES = 21
    VHOST_USER_PROTOCOL_F_SHMEM_MAP = 22


# Bits of the device features (GET_FEATURES) that belong to vhost and not to virtio.
VHOST_F_LOG_ALL: Final = 26  # log every write to guest memory (live migration)
VHOST_USER_F_PROTOCOL_FEATURES: Final = 30  # the peer understands protocol features; virtio never uses this bit

# Header: request id, flags, payload size in bytes.
HEADER: Final = Struct("<III")
VHOST_USER_VERSION: Final = 0x1
VHOST_USER_VERSION_MASK: Final = 0x3
VHOST_USER_REPLY_MASK: Final = 0x4  # set on every reply
VHOST_USER_NEED_REPLY_MASK: Final = 0x8  # with REPLY_ACK: answer this message with a u64, 0 for success

# A message carries at most as many file descriptors as SET_MEM_TABLE carries regions.
VHOST_MEMORY_BASELINE_NREGIONS: Final = 8
VHOST_USER_MAX_FDS: Final = VHOST_MEMORY_BASELINE_NREGIONS

# SET_VRING_KICK, _CALL and _ERR: a u64 with the ring's index, and a flag that says "no descriptor comes with this".
VHOST_USER_VRING_IDX_MASK: Final = 0xFF
VHOST_USER_VRING_NOFD_MASK: Final = 0x100

# SET_VRING_ADDR flags.
VHOST_VRING_F_LOG: Final = 0

# GET_CONFIG and SET_CONFIG.
VHOST_USER_MAX_CONFIG_SIZE: Final = 256  # bytes of configuration space in one message
VHOST_USER_CONFIG_F_WRITABLE: Final = 0  # the guest wrote a writable field
VHOST_USER_CONFIG_F_MIGRATION: Final = 1  # a migration restores the space, read-only fields too

# Payloads.
U64: Final = Struct("<Q")
VRING_STATE: Final = Struct("<II")  # index, num
VRING_ADDR: Final = Struct("<IIQQQQ")  # index, flags, descriptor, used, available (user addresses), log (guest)
MEMORY_HEADER: Final = Struct("<II")  # number of regions, padding
MEMORY_REGION: Final = Struct("<QQQQ")  # guest address, size, user address, mmap offset
MEM_REG: Final = Struct("<QQQQQ")  # padding, then one region
CONFIG_HEADER: Final = Struct("<III")  # offset, size, flags; `size` bytes follow

# A format with a slip in it would shift every field behind it: compare with the C structures once, on import.
assert HEADER.size == 12
assert U64.size == 8
assert VRING_STATE.size == 8  # struct vhost_vring_state
assert VRING_ADDR.size == 40  # struct vhost_vring_addr
assert MEMORY_HEADER.size == 8  # struct vhost_memory, without its regions
assert MEMORY_REGION.size == 32  # struct vhost_memory_region
assert MEM_REG.size == 40
assert CONFIG_HEADER.size == 12

REQUEST_NAMES: Final[dict[int, str]] = {int(request): request.name for request in FrontendRequest}
BACKEND_REQUEST_NAMES: Final[dict[int, str]] = {int(request): request.name for request in BackendRequest}
PROTOCOL_FEATURE_NAMES: Final[dict[int, str]] = {int(bit): bit.name for bit in ProtocolFeature}
