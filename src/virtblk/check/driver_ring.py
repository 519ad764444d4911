"""What a driver does with a device that lies in the used ring, in its answers, and about notifications.

Each check spoils one request (the first read, write or flush that the driver sends, or any) and demands that the
failure is reported, or, where nothing is lost, that the driver is not disturbed. Registered on import.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from virtblk.check.driver_device import Device, Request
from virtblk.check.driver_trial import DRIVER, FLUSH, READ, WRITE, Trial
from virtblk.check.requirement import Severity
from virtblk.uapi import virtio_blk as blk

CRITICAL, HIGH, LOW = Severity.CRITICAL, Severity.HIGH, Severity.LOW
_USED: Final = "2.7.8, 2.7.14"
_STATUS: Final = "5.2.6"
_NOTIFY: Final = "2.7.7, 2.7.10"
Spoiler = Callable[[Device, Request], None]


# The used ring.


def wrong_id(make: Callable[[Device, Request], int]) -> Spoiler:
    return lambda device, request: device.complete(request, used_id=make(device, request))


def _num(device: Device) -> int:
    return device.ring.num if device.ring is not None else 0


def _free_head(device: Device, request: Request) -> int:
    """A head that is not out: the one that a driver is the least likely to have used."""
    return (request.head + _num(device) // 2 + 1) % max(1, _num(device))


@DRIVER.must("used.id-size", _USED, CRITICAL)
def id_of_the_ring_size(trial: Trial) -> str:
    """An id that is the queue's size names no descriptor: the driver stops trusting the ring, and reports it."""
    return trial.play(request=wrong_id(lambda device, request: _num(device))).fails()


@DRIVER.must("used.id-huge", _USED, CRITICAL)
def id_past_everything(trial: Trial) -> str:
    """Nor does an id of 2^32-1, nor one whose low 16 bits would be right."""
    return trial.play(request=wrong_id(lambda device, request: 0xFFFF0000 | request.head)).fails()


@DRIVER.must("used.id-free", _USED, CRITICAL)
def id_that_is_not_out(trial: Trial) -> str:
    """An id that the driver did not make available completes nothing."""
    return trial.play(request=wrong_id(_free_head)).fails()


@DRIVER.must("used.twice", _USED, CRITICAL)
def the_same_id_twice(trial: Trial) -> str:
    """A request that comes back twice is completed once; its descriptors are not free twice."""

    def spoil(device: Device, request: Request) -> None:
        assert device.ring is not None
        device.complete(request, show=False)
        device.ring.put_used(request.head, 1)
        device.publish()

    return trial.play(request=spoil).fails()


def _show(device: Device, ahead: int) -> None:
    """A used index that is wrong by so much. It has to stand: no answer comes after it that would put it right."""
    device.publish(ahead)
    device.call()
    device.running = False


@DRIVER.must("used.index-jump", _USED, CRITICAL)
def index_ahead_of_all(trial: Trial) -> str:
    """A used index that moved by more than is out does not make the driver read what was never written."""

    def spoil(device: Device, request: Request) -> None:
        device.complete(request, show=False)
        _show(device, _num(device) + 1)

    return trial.play(request=spoil).fails()


@DRIVER.must("used.index-half", _USED, CRITICAL)
def index_half_way_round(trial: Trial) -> str:
    """The same for an index 32768 ahead."""

    def spoil(device: Device, request: Request) -> None:
        device.complete(request, show=False)
        _show(device, 32768)

    return trial.play(request=spoil).fails()


@DRIVER.must("used.index-back", _USED, CRITICAL)
def index_that_goes_back(trial: Trial) -> str:
    """The same for one that goes back, by more than the ring holds: less could undo what the driver has not seen."""

    def spoil(device: Device, request: Request) -> None:
        device.complete(request, show=False)
        _show(device, -2 - _num(device))

    return trial.play(request=spoil).fails()


@DRIVER.must("used.length-over", _USED, HIGH)
def length_past_the_buffers(trial: Trial) -> str:
    """A length of more than the device could write is a lie, and nothing else that it says can be believed."""
    return trial.play(request=lambda device, request: device.complete(request, used_len=request.room + 2)).fails()


@DRIVER.must("used.length-huge", _USED, HIGH)
def length_of_4_gib(trial: Trial) -> str:
    """The same for 2^32-1 bytes."""
    return trial.play(request=lambda device, request: device.complete(request, used_len=0xFFFFFFFF)).fails()


@DRIVER.should("used.length-short", "2.7.8.2", Severity.DEVIATION)
def length_without_the_data(trial: Trial) -> str:
    """A driver should not rely on bytes past the length that the device wrote, so a read of length 0 that is OK is no
    read. (Most drivers look at the status alone, since devices of old set no length.)"""
    return trial.play(of=READ, request=lambda device, request: device.complete(request, used_len=0)).fails()


@DRIVER.should("used.order", "2.7.14", HIGH)
def answers_out_of_order(trial: Trial) -> str:
    """Requests end in any order: held ones that are answered backwards are all completed."""
    return trial.play(request=_backwards, every=True).goes_on()


def _backwards(device: Device, request: Request) -> None:
    if not device.held:
        device.later(0.002, lambda: _answer_held(device))
    device.held.append(request)


def _answer_held(device: Device) -> None:
    held, device.held = device.held, []
    for request in reversed(held):
        device.complete(request, show=False)
    device.publish()


@DRIVER.must("used.flags-noise", "2.7.8", LOW)
def undefined_used_flags(trial: Trial) -> str:
    """Undefined bits of used->flags mean nothing."""

    def spoil(device: Device, request: Request) -> None:
        assert device.ring is not None
        device.ring.used[0] = 0xFFFE
        device.complete(request)

    return trial.play(request=spoil).goes_on()


# Answers.


def _status(status: int, *, write: bool = True) -> Spoiler:
    return lambda device, request: device.complete(request, status, write_status=write)


@DRIVER.must("status.read-error", _STATUS, CRITICAL)
def failed_read(trial: Trial) -> str:
    """A read that the device failed is not reported as done."""
    return trial.play(of=READ, request=_status(blk.VIRTIO_BLK_S_IOERR)).fails()


@DRIVER.must("status.write-error", _STATUS, CRITICAL)
def failed_write(trial: Trial) -> str:
    """A write that the device failed is not reported as done."""
    return trial.play(of=WRITE, request=_status(blk.VIRTIO_BLK_S_IOERR)).fails()


@DRIVER.must("status.flush-error", _STATUS, CRITICAL)
def failed_flush(trial: Trial) -> str:
    """A flush that the device failed is not reported as done: what was written before may be lost."""
    return trial.play(of=FLUSH, request=_status(blk.VIRTIO_BLK_S_IOERR)).fails()


@DRIVER.must("status.unsupported", _STATUS, CRITICAL)
def unsupported(trial: Trial) -> str:
    """Nor is a request that the device calls unsupported."""
    return trial.play(request=_status(blk.VIRTIO_BLK_S_UNSUPP)).fails()


@DRIVER.must("status.undefined", _STATUS, CRITICAL)
def undefined_status(trial: Trial) -> str:
    """A status of 3, which means nothing, is not success."""
    return trial.play(request=_status(3)).fails()


@DRIVER.must("status.255", _STATUS, CRITICAL)
def status_of_all_ones(trial: Trial) -> str:
    """Nor is 255."""
    return trial.play(request=_status(255)).fails()


@DRIVER.must("status.high-bit", _STATUS, CRITICAL)
def status_that_is_ok_in_its_low_bits(trial: Trial) -> str:
    """Nor is 128, whose low bits are those of OK."""
    return trial.play(request=_status(128)).fails()


@DRIVER.should("status.untouched", _STATUS, CRITICAL)
def no_status_at_all(trial: Trial) -> str:
    """A request that comes back with its status byte untouched was not done; a driver that sets the byte to no status
    before it asks can tell."""
    return trial.play(request=_status(0, write=False)).fails()


# Silence, and the end of the session.


@DRIVER.should("lost.never-answered", _USED, HIGH)
def never_answered(trial: Trial) -> str:
    """A request that never comes back does not keep its submitter for ever: there is a time-out, and it is reported."""
    return trial.play(request=lambda device, request: None).fails()


@DRIVER.should("lost.all-silent", _USED, HIGH)
def nothing_is_answered_any_more(trial: Trial) -> str:
    """The same where the device answers nothing from then on."""
    return trial.play(request=lambda device, request: None, every=True).fails()


def _hang_up(device: Device, request: Request) -> None:
    device.hang_up()


@DRIVER.must("hangup.in-flight", "vhost-user: Communication", CRITICAL)
def hang_up_with_io_in_flight(trial: Trial) -> str:
    """A device that dies with requests out did not do them."""
    return trial.play(request=_hang_up).fails()


@DRIVER.must("hangup.write-in-flight", "vhost-user: Communication", CRITICAL)
def hang_up_with_a_write(trial: Trial) -> str:
    """The same for a write: it may be done or not, and is not reported as done."""
    return trial.play(of=WRITE, request=_hang_up).fails()


@DRIVER.must("hangup.before-index", "vhost-user: Communication", HIGH)
def hang_up_between_element_and_index(trial: Trial) -> str:
    """A device that dies between a used element and the used index has not answered."""

    def spoil(device: Device, request: Request) -> None:
        device.complete(request, show=False)
        device.hang_up()

    return trial.play(request=spoil).fails()


@DRIVER.must("hangup.after-lie", "vhost-user: Communication", HIGH)
def hang_up_after_a_wrong_id(trial: Trial) -> str:
    """Two failures at once, a wrong id and the end of the connection, are one failure."""

    def spoil(device: Device, request: Request) -> None:
        device.complete(request, used_id=_num(device))
        device.hang_up()

    return trial.play(request=spoil).fails()


@DRIVER.must("hangup.first-request", "vhost-user: Communication", HIGH)
def hang_up_at_the_first_request(trial: Trial) -> str:
    """A device that dies at its very first request, which may be GET_ID, is noticed."""
    return trial.play(of=lambda request: True, request=_hang_up).fails()


# Notifications.


@DRIVER.must("notify.early", _NOTIFY, LOW)
def interrupt_before_the_answer(trial: Trial) -> str:
    """An interrupt that comes before the answer finds nothing, and the answer is still found."""

    def spoil(device: Device, request: Request) -> None:
        device.call()
        time.sleep(0.01)
        device.complete(request)

    return trial.play(request=spoil).goes_on()


@DRIVER.must("notify.flood", _NOTIFY, LOW)
def interrupts_without_end(trial: Trial) -> str:
    """A thousand interrupts for one answer are one interrupt too many each, and no more."""

    def spoil(device: Device, request: Request) -> None:
        for _ in range(1000):
            device.call()
        device.complete(request)

    return trial.play(request=spoil).goes_on()


@DRIVER.must("notify.at-start", _NOTIFY, LOW)
def interrupt_at_the_start(trial: Trial) -> str:
    """An interrupt before the first request does no harm."""

    def start(device: Device) -> None:
        device.spoil("interrupts before the first request")
        device.call()

    return trial.play(start=start).goes_on()


@DRIVER.should("notify.late", _NOTIFY, LOW)
def late_answer(trial: Trial) -> str:
    """An answer that takes long, within the driver's time-out, is waited for."""
    seconds = min(0.3, trial.timeout / 10)
    return trial.play(request=lambda device, request: device.later(seconds, lambda: device.complete(request))).goes_on()


@DRIVER.should("notify.missing", _NOTIFY, LOW)
def answer_without_an_interrupt(trial: Trial) -> str:
    """An answer whose interrupt the device forgot is found all the same, or reported as missing: the driver does not
    wait for ever."""
    return trial.play(request=lambda device, request: device.complete(request, call=False)).survives()


@DRIVER.must("notify.stolen", "vhost-user: SET_VRING_CALL", LOW)
def stolen_interrupts(trial: Trial) -> str:
    """A device that reads the call descriptor empty after it wrote to it, as any holder can, does not hang a driver."""

    def spoil(device: Device, request: Request) -> None:
        device.complete(request)
        os.set_blocking(device.call_fd, False)
        with suppress(BlockingIOError, OSError):
            os.read(device.call_fd, 8)

    return trial.play(request=spoil).survives()


@DRIVER.must("notify.kick-full", "vhost-user: SET_VRING_KICK", HIGH)
def full_kick_descriptor(trial: Trial) -> str:
    """A kick descriptor that is full, so that a write to it would block, does not block the driver."""

    def spoil(device: Device, request: Request) -> None:
        device.complete(request)
        with suppress(OSError):
            os.set_blocking(device.kick_fd, True)
            os.write(device.kick_fd, (0xFFFFFFFFFFFFFFFE).to_bytes(8, "little"))
        _poll_the_ring(device, time.monotonic() + 0.3)
        with suppress(OSError):
            os.set_blocking(device.kick_fd, False)
            os.read(device.kick_fd, 8)

    return trial.play(request=spoil).goes_on()


def _poll_the_ring(device: Device, until: float) -> None:
    """Serve without kicks for a while."""
    while time.monotonic() < until and device.ring is not None:
        if device.ring.waiting():
            request = device._parse(device.ring, device.ring.next_head())
            device.requests += 1
            device.complete(request)
        else:
            time.sleep(0.001)


@DRIVER.must("notify.event-noise", _NOTIFY, HIGH)
def event_index_anywhere(trial: Trial) -> str:
    """An event index where the driver has long been, or will not be for long, costs kicks and nothing else: the device
    looks by itself here."""

    def spoil(device: Device, request: Request) -> None:
        device.complete(request)
        if device.ring is not None:
            device.ring.used[2 + 4 * device.ring.num] = (device.ring.last_avail + 0x8000) & 0xFFFF
        _poll_the_ring(device, time.monotonic() + 0.2)

    return trial.play(request=spoil).goes_on()


# Memory that both can write.


@DRIVER.should("memory.scribbled-descriptors", "2.7.5", HIGH)
def scribbled_descriptors(trial: Trial) -> str:
    """What a driver needs for itself (which descriptors a request has, which are free) it does not read back from where
    the device writes: noise in the descriptor of each request that is answered harms nobody."""

    def spoil(device: Device, request: Request) -> None:
        if device.ring is not None:
            device.ring.desc[16 * request.head : 16 * request.head + 16] = b"\xff" * 16
        device.complete(request)

    return trial.play(request=spoil, every=True).goes_on()


def _alone(spoil: Spoiler) -> Spoiler:
    """Spoil only while nothing else is out, so that no other request is harmed."""

    def action(device: Device, request: Request) -> None:
        if device.ring is not None and device.ring.waiting():
            device.complete(request)
            return
        spoil(device, request)

    return action


@DRIVER.should("memory.scribbled-avail", "2.7.6", HIGH)
def scribbled_available_ring(trial: Trial) -> str:
    """The available index is the driver's own: what the device writes there is not where the driver goes on from."""

    def spoil(device: Device, request: Request) -> None:
        assert device.ring is not None
        right = device.ring.avail[1]
        device.ring.avail[1] = (right + 5) & 0xFFFF
        device.ring.last_avail = right
        device.complete(request)
        deadline = time.monotonic() + 1
        while device.ring.avail[1] == (right + 5) & 0xFFFF and time.monotonic() < deadline:
            time.sleep(0.001)
        if device.ring.avail[1] == (right + 5) & 0xFFFF:
            device.ring.avail[1] = right

    return trial.play(request=_alone(spoil)).survives()


@DRIVER.should("memory.truncated", "vhost-user: Memory region description", HIGH)
def truncated_memory(trial: Trial) -> str:
    """A device that shortens the file of the shared memory does not kill the driver: the file is sealed, or the loss is
    handled."""

    def spoil(device: Device, request: Request) -> None:
        for fd in device.memory_fds:
            with suppress(OSError):
                os.ftruncate(fd, 0)
                device.spoilt += "; the memory file could be truncated"
                device.hang_up()
                return
        device.complete(request)

    return trial.play(request=spoil).survives()
