"""Descriptors and mappings that stay, though nobody needs them any more."""

from __future__ import annotations

from typing import Final

from .mutant import Mutant, mutant

BACKEND: Final = "vhost_user/backend.py"
CONNECTION: Final = "vhost_user/connection.py"
GUEST_MEMORY: Final = "mem/guest_memory.py"
LISTENER: Final = "vhost_user/listener.py"
VRING: Final = "vhost_user/vring.py"

_KEPT: Final = "\n_kept: list[object] = []\n"

MUTANTS: Final[tuple[Mutant, ...]] = (
    mutant(
        "session_fd_leaked",
        "vhost.fds-session",
        "Each session leaves a descriptor open.",
        LISTENER,
        "        conn.close()\n            os.eventfd_write(ended, 1)\n",
        "        conn.close()\n            os.dup(ended)\n            os.eventfd_write(ended, 1)\n",
    ),
    mutant(
        "old_call_fd_leaked",
        "vhost.fds-ring",
        "The old call descriptor stays open when a new one comes.",
        VRING,
        "                self._device.set_call(ring.index, fd)\n        finally:\n            close_fd(old)",
        "                self._device.set_call(ring.index, fd)\n        finally:\n            pass",
    ),
    mutant(
        "old_err_fd_leaked",
        "vhost.fds-ring",
        "The old error descriptor stays open when a new one comes.",
        VRING,
        "            self.halt(ring)\n        finally:\n            close_fd(old)",
        "            self.halt(ring)\n        finally:\n            pass",
    ),
    mutant(
        "old_kick_fd_leaked",
        "vhost.fds-ring vhost.fds-restart",
        "The kick descriptor stays open when the ring stops.",
        VRING,
        "        close_fd(ring.kick_fd)\n",
        "",
    ),
    mutant(
        "table_fds_leaked",
        "vhost.fds-table",
        "The descriptors of a memory table stay open.",
        BACKEND,
        "        with self._rings.paused():\n            self._clear_memory()\n            try:\n",
        "        msg.fds[:] = [os.dup(fd) for fd in msg.fds]\n        with self._rings.paused():\n"
        "            self._clear_memory()\n            try:\n",
    ),
    mutant(
        "table_stays_mapped",
        "vhost.maps-table",
        "The regions of a table that was replaced are not used any more, and stay mapped.",
        GUEST_MEMORY,
        "        for region in regions:\n            region.close()\n",
        "        _kept.extend(regions)\n",
        extra=_KEPT,
    ),
    mutant(
        "region_fd_leaked",
        "vhost.fds-region",
        "The descriptor of an added memory region stays open.",
        BACKEND,
        "            self._map(region, msg.fds[0])\n",
        "            self._map(region, msg.take_fd(0))\n",
    ),
    mutant(
        "removed_region_stays_mapped",
        "vhost.maps-region",
        "A removed memory region is not used any more, and stays mapped.",
        GUEST_MEMORY,
        "                self._publish()\n                region.close()\n",
        "                self._publish()\n                _kept.append(region)\n",
        extra=_KEPT,
    ),
    mutant(
        "removed_fd_leaked",
        "vhost.fds-removal",
        "A descriptor that comes with REM_MEM_REG stays open.",
        BACKEND,
        "        wanted = message.decode_mem_reg(msg.payload)\n",
        "        wanted = message.decode_mem_reg(msg.payload)\n        while msg.fds:\n            msg.take_fd(0)\n",
    ),
    mutant(
        "old_channel_leaked",
        "vhost.fds-backend-req",
        "The old back-end channel stays open when a new one comes.",
        BACKEND,
        "        old, self._backend_req_fd = self._backend_req_fd, fd\n        close_fd(old)\n",
        "        self._backend_req_fd = fd\n",
    ),
    mutant(
        "refused_fds_leaked",
        "vhost.fds-refused vhost.fds-unknown",
        "Descriptors of a message that is refused stay open.",
        BACKEND,
        "        except (Refused, ProtocolError) as error:\n",
        "        except (Refused, ProtocolError) as error:\n            msg.fds.clear()\n",
    ),
    mutant(
        "uninvited_fds_leaked",
        "vhost.fds-uninvited",
        "Descriptors that come with a message that takes none stay open.",
        BACKEND,
        "            if msg.surplus_fds or len(msg.fds) > handler.max_fds:\n",
        "            if not handler.max_fds:\n                msg.fds.clear()\n"
        "            if msg.surplus_fds or len(msg.fds) > handler.max_fds:\n",
    ),
    mutant(
        "surplus_fds_leaked",
        "vhost.fds-many",
        "The ninth descriptor of a message, and those after it, stay open.",
        CONNECTION,
        "        _close_all(surplus)\n",
        "",
    ),
)
