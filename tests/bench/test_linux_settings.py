"""A path as Linux settings: a table."""

from __future__ import annotations

import pytest

from virtblk.bench.linux_settings import QUEUE, linux_settings, selected

DEADLINE = {"scheduler": "noop [deadline]", "nr_requests": "256", "nomerges": "0"}
NOOP = {"scheduler": "[noop] deadline", "nr_requests": "256", "nomerges": "1"}


@pytest.mark.parametrize(
    ("path", "queue", "settings"),
    [
        ("request", DEADLINE, {"scheduler": "mq-deadline", "nr_requests": "256"}),
        ("request", NOOP, {"scheduler": "none", "nomerges": "1", "nr_requests": "256"}),
        ("bio", DEADLINE, {"scheduler": "none", "nomerges": "2"}),
        # blk-mq without a scheduler has no more requests than the ring has entries
        (
            "mq",
            {"scheduler": "none", "nr_requests": "256", "nomerges": "0"},
            {"scheduler": "none", "nr_requests": "128"},
        ),
        (
            "mq",
            {"scheduler": "none [mq-deadline]", "nr_requests": "256"},
            {"scheduler": "mq-deadline", "nr_requests": "256"},
        ),
        ("auto", {"scheduler": "[none] mq-deadline", "nr_requests": "64"}, {"scheduler": "none", "nr_requests": "64"}),
        ("mq", {}, {"scheduler": "none"}),
    ],
)
def test_the_table(path: str, queue: dict[str, str], settings: dict[str, str]) -> None:
    lines = [line for line in linux_settings(path, queue, ring=128, queues=2) if not line.startswith("#")]
    assert lines[-1] == "virtio_blk.num_request_queues=2"
    assert lines[:-1] == [f"echo {value} > {QUEUE}/{name}" for name, value in settings.items()]


def test_paths_that_linux_no_longer_has_say_so() -> None:
    assert linux_settings("request", DEADLINE, 128, 1)[-1].startswith("# ")
    assert linux_settings("bio", DEADLINE, 128, 1)[-1].startswith("# ")
    assert not linux_settings("mq", DEADLINE, 128, 1)[-1].startswith("# ")


def test_poll_queues() -> None:
    lines = linux_settings("mq", {}, ring=128, queues=4, poll_queues=2)
    assert lines[1:3] == ["virtio_blk.num_request_queues=4", "virtio_blk.poll_queues=2"]
    assert [line for line in lines if not line.startswith("#")] == lines[:3]
    assert not any("poll" in line for line in linux_settings("mq", {}, ring=128, queues=4))


def test_the_scheduler_that_is_set() -> None:
    assert selected("noop [deadline]") == "deadline"
    assert selected("[none] mq-deadline kyber") == "none"
    assert selected("none") == "none"
    assert selected("") == ""
