"""The guest's attack by itself: cases that are made, described and run again, and what becomes of what goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import virtblk
from fuzz.test_guest_generate import attack
from virtblk.fuzz import guest_attack as module
from virtblk.fuzz.case import CRASH, HANG, WRONG, Case, DeviceFailed
from virtblk.fuzz.front_end import ask_facts
from virtblk.fuzz.groups import GUEST, Coverage
from virtblk.fuzz.guest.state import DONE, FOUND
from virtblk.fuzz.guest_attack import GuestAttack
from virtblk.fuzz.target import Target
from virtblk.jit.atomics import load_acquire_i64
from virtblk.vhost_user.connection import ConnectionClosed
from virtblk.vhost_user.message import ProtocolError
from waiting import PATIENCE


@pytest.fixture
def guest() -> Iterator[GuestAttack]:
    made = attack()
    yield made
    made.close()


def test_what_was_sent_last_is_suspected_and_can_be_sent_again(tmp_path: Path) -> None:
    """On a sound device nothing comes of it, each time."""
    path = str(tmp_path / "s")
    with virtblk.serve("ram:1m", path), Target(path, None, PATIENCE) as target:
        target.start()
        guest = GuestAttack(target, ask_facts(target), 3, Coverage())
        try:
            guest.attack(time.monotonic() + PATIENCE, 1)
            assert guest.inputs > 0
            cases = guest.suspects()
            steps = [case.steps for case in cases]
            assert all(longer[-len(shorter) :] == shorter for shorter, longer in pairwise(steps))
            assert 0 < len(steps[-1]) < guest.inputs, "honest requests are no suspects"
            guest.restarted()
            guest.run(cases[0])
            lines = guest.notes(cases[0])
        finally:
            guest.close()
    requests = [line for line in lines if line.startswith("request ")]
    assert requests[0].startswith(f"request {cases[0].steps[0][1]:#x}: header ")
    assert any("length 16, " in line for line in lines), "a header's descriptor"


def test_one_request_is_described_by_its_descriptors(guest: GuestAttack) -> None:
    seed = 5
    first, *descriptors = guest.notes(Case(GUEST, [[1, seed]]))
    assert first.startswith(f"request {seed:#x}: header ")
    assert descriptors
    assert all(f"  descriptor {k}: address " in line for k, line in enumerate(descriptors))


def test_what_the_kernel_finds_is_wrong_data(guest: GuestAttack) -> None:
    guest._state["finding"], guest._state["finding_slot"] = 1, 4
    with pytest.raises(DeviceFailed, match=r"\(request 4 of its batch\)") as caught:
        guest._judge(FOUND)
    assert caught.value.kind == WRONG
    guest._judge(DONE)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(TimeoutError("no answer"), HANG), (ProtocolError("no"), WRONG), (ConnectionClosed("gone"), "")],
)
def test_what_goes_wrong_with_sound_messages(error: Exception, kind: str, guest: GuestAttack) -> None:
    """A session may end at any time, as long as the process lives."""
    looked: list[str] = []
    guest._target = SimpleNamespace(check_alive=lambda: looked.append("alive"))  # type: ignore[assignment]
    guest._front = SimpleNamespace()  # type: ignore[assignment]
    with pytest.raises(DeviceFailed if kind else module._Closed) as caught, guest._talking():
        raise error
    if kind:
        assert caught.value.kind == kind  # type: ignore[union-attr]
    assert looked == ([] if kind else ["alive"])
    assert (guest._front is None) == (not kind)


def test_sound_requests_without_an_answer_are_a_hang(guest: GuestAttack) -> None:
    guest._state["outstanding"] = 3
    failure = guest._unanswered()
    assert (failure.kind, failure.detail) == (HANG, "3 sound requests are not answered within 1 s")


def test_an_honest_client_that_is_disconnected_is_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "s")
    with virtblk.serve("ram:1m", path), Target(path, None, PATIENCE) as target:
        target.start()
        guest = GuestAttack(target, ask_facts(target), 3, Coverage())

        def gone(front: Any, features: int) -> None:
            raise ConnectionClosed("the peer closed the connection")

        monkeypatch.setattr(module.Frontend, "set_features", gone)
        try:
            with pytest.raises(DeviceFailed, match="an honest client is disconnected: the peer closed") as caught:
                guest.attack(time.monotonic() + PATIENCE, 1)
        finally:
            guest.close()
    assert caught.value.kind == CRASH


def test_an_index_out_of_bounds_is_told_where_it_was_asked_for(
    guest: GuestAttack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a checking build; it happens on a thread."""

    def broken(*arguments: Any) -> int:
        raise IndexError("table index is out of bounds")

    monkeypatch.setattr(module, "drive", broken)
    with pytest.raises(IndexError):
        guest._call(0)


def test_ctrl_c_waits_for_the_kernel_whose_memory_it_frees(guest: GuestAttack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes twice: while the kernel runs, and again while its end is waited for."""
    ended: list[bool] = []
    running = threading.Event()

    def until_told(*arguments: Any) -> int:
        running.set()
        while load_acquire_i64(guest._words.address(0)) == 0:
            time.sleep(0.001)
        ended.append(True)
        return DONE

    class Interrupted(threading.Event):
        times = 2

        def wait(self, timeout: float | None = None) -> bool:
            assert running.wait(PATIENCE)
            if self.times:
                self.times -= 1
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(module, "drive", until_told)
    kept = SimpleNamespace(Event=Interrupted, Lock=threading.Lock, Thread=threading.Thread)
    monkeypatch.setattr(module, "threading", kept)
    with pytest.raises(KeyboardInterrupt):
        guest._call(0)
    assert ended == [True]
