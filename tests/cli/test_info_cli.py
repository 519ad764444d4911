"""`virtblk info`: features and config by name, as text and as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli.harness import virtblk
from fake_device import FakeDevice
from naive.virtio_blk import F_FLUSH, F_RO, F_TOPOLOGY, F_WCE, FEATURES, PROTOCOL_FEATURES, blk_config
from virtblk import __version__
from virtblk.cli import main

Capture = pytest.CaptureFixture[str]
F_SECURE_ERASE, F_UNHEARD_OF = 1 << 16, 1 << 60


def facts(text: str) -> dict[str, Any]:
    """`key: value` lines; a key without a value has a list of indented ones."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("  "):
            found[key].append(line.strip())  # noqa: F821
        else:
            key, _, value = line.partition(":")
            found[key] = value.strip() or []
    return found


@pytest.fixture
def told(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs `virtblk info` on a fake device and returns what it says, as text and as JSON."""

    def ask(**given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        with FakeDevice(**given) as device:
            monkeypatch.setattr("virtblk.disk.Connection.connect", lambda path, timeout: device.client)
            assert main(["info", "vhost-user:fake", "--json", "-"]) == 0
            assert not [request for request in device.io if request.type == 1], "nothing is written"
        captured = capsys.readouterr()
        return facts(captured.err), json.loads(captured.out)

    return ask


CONFIG = blk_config(
    capacity=8192,
    size_max=65536,
    seg_max=62,
    blk_size=4096,
    physical_block_exp=3,
    alignment_offset=1,
    min_io_size=2,
    opt_io_size=16,
    writeback=1,
    num_queues=4,
)


def test_every_fact_of_the_config(told: Any) -> None:
    text, value = told(features=FEATURES | F_TOPOLOGY | F_WCE, config=CONFIG, queue_num=4, serial=b"abc-7\0")
    assert text["name"] == "vhost-user:fake"
    assert text["disk"] == "vda"
    assert text["queue_path"] == "request"
    assert text["serial"] == "abc-7"
    assert text["size"] == "4194304 (4m)"
    assert text["read_only"] == "no"
    assert text["cache_type"] == "write back"
    device = value["device"]
    assert value["virtblk"] == __version__
    assert (device["size"], device["capacity"], device["block_size"]) == (4 << 20, 8192, 4096)
    assert (device["physical_block_size"], device["alignment_offset"]) == (32768, 4096)
    assert (device["min_io_size"], device["opt_io_size"]) == (8192, 65536)
    assert (device["seg_max"], device["size_max"], device["num_queues"]) == (62, 65536, 4)
    assert device["read_only"] is False


def test_features_by_name_taken_and_refused(told: Any) -> None:
    text, value = told(features=FEATURES | F_SECURE_ERASE | F_UNHEARD_OF, protocol_features=PROTOCOL_FEATURES | 1 << 4)
    assert "VIRTIO_F_VERSION_1" in text["features"]
    assert "VIRTIO_BLK_F_FLUSH" in text["features"]
    assert text["features_refused"] == ["VIRTIO_BLK_F_SECURE_ERASE", "bit 60"]
    assert "VHOST_USER_PROTOCOL_F_CONFIG" in text["protocol_features"]
    assert len(text["protocol_features_refused"]) == 1
    for key in ("features", "features_refused", "protocol_features", "protocol_features_refused"):
        assert value["device"][key] == text[key]


def test_the_hint_of_a_device(told: Any) -> None:
    assert told(features=FEATURES)[0]["hint"] == "none"
    text, value = told(features=FEATURES | 1 << 23)
    assert (text["hint"], value["device"]["hint"]) == ("sort", "sort")
    assert text["features_refused"] == ["VIRTBLK_F_SORT"]


@pytest.mark.parametrize(
    ("features", "writeback", "cache"),
    [
        (FEATURES, 0, "write back"),  # FLUSH without CONFIG_WCE
        (FEATURES | F_WCE, 1, "write back"),
        (FEATURES | F_WCE, 0, "write through"),
        (FEATURES & ~F_FLUSH, 0, "write through"),
    ],
)
def test_cache_mode(told: Any, features: int, writeback: int, cache: str) -> None:
    assert told(features=features, config=blk_config(writeback=writeback))[0]["cache_type"] == cache


def test_a_read_only_disk(told: Any) -> None:
    text, value = told(features=FEATURES | F_RO)
    assert text["read_only"] == "yes"
    assert value["device"]["read_only"] is True


def test_a_disk_without_a_serial(told: Any) -> None:
    assert told(serial=b"")[1]["device"]["serial"] == ""


@pytest.mark.parametrize("disk", ["ram:1m", "null:3m?block_size=4k"])
def test_a_disk_of_our_own(disk: str, capsys: Capture) -> None:
    assert main(["info", disk]) == 0
    text = facts(capsys.readouterr().out)
    assert (text["name"], text["serial"]) == (disk, disk[:20])
    assert text["block_size"] == ("4096" if "4k" in disk else "512")
    assert text["features_refused"] == "none"


@pytest.mark.once
def test_as_a_program() -> None:
    status, out, err = virtblk("info", "null:1m", "--json", "-")
    assert status == 0
    assert json.loads(out)["device"]["size"] == 1 << 20
    assert facts(err)["size"] == "1048576 (1m)"
