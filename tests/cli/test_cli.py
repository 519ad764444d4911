"""What a user gets wrong, and what a socket has wrong behind it: one line with the value, and the exit status."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.harness import complaint, server, until_closed, virtblk
from fake_device import FakeDevice, Fault
from naive.virtio_blk import FEATURES, PROTOCOL_FEATURES, VERSION_1, blk_config
from virtblk import __version__, cli
from virtblk.cli import COMMANDS, main
from virtblk.errors import DeviceError, OpenError, UsageError
from virtblk.names import KNOWN
from virtblk.uapi.vhost_user import FrontendRequest as R

Capture = pytest.CaptureFixture[str]
BENCH, INFO = "bench", "info"


# Usage.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["frobnicate"], "frobnicate"),
        (["--frobnicate"], "unknown argument '--frobnicate' (see virtblk --help)"),
        (["bench", "--frobnicate"], "unknown argument '--frobnicate' (see virtblk bench --help)"),
        (["bench", "ram:1m", "ram:2m"], "unknown argument 'ram:2m' (see virtblk bench --help)"),
        (["info"], "DISK"),
        (["info", "ram:1m", "--bs", "4k"], "unknown argument '--bs' (see virtblk info --help)"),
        (["warmup", "now"], "unknown argument 'now' (see virtblk warmup --help)"),
        (["bench", "--bs"], "--bs: expected one argument"),
        (["bench", "--bs", "4x"], "--bs '4x'"),
        (["bench", "--bs", "0"], "--bs 0"),
        (["bench", "--bs", "700"], "--bs 700"),
        (["bench", "--size", "0"], "--size 0"),
        (["bench", "--size", "-1"], "--size"),
        (["bench", "--size", "lots"], "--size 'lots'"),
        (["bench", "--iodepth", "0"], "--iodepth 0"),
        (["bench", "--iodepth", "deep"], "--iodepth: 'deep' is no whole number"),
        (["bench", "--numjobs", "0"], "--numjobs 0"),
        (["bench", "--numjobs", "1.5"], "--numjobs: '1.5' is no whole number"),
        (["bench", "--iodepth-batch-submit", "33"], "--iodepth-batch-submit 33"),
        (["bench", "--runtime", "long"], "--runtime: 'long' is no number"),
        (["bench", "--runtime", "nan"], "--runtime: 'nan'"),
        (["bench", "--ramp-time", "-1"], "--ramp-time"),
        (["bench", "--timeout", "0"], "--timeout 0"),
        (["bench", "--queues", "4"], "--queues 4"),
        (["bench", "--queues", "many", "--path", "mq"], "--queues: 'many' is no whole number"),
        (["bench", "--queues", "4", "--path", "mq", "--poll-queues", "4"], "--poll-queues 4: give 0 to 3"),
        (["bench", "--queue-size", "100"], "--queue-size 100"),
        (["bench", "--rw", "reed"], "--rw 'reed'"),
        (["bench", "--path", "blk"], "--path 'blk' is no path; give request, bio, mq, auto"),
        (["bench", "--path", "sideways"], "--path 'sideways'"),
        (["bench", "--use-bio", "2"], "'2'"),
        (["bench", "--use-bio", "1", "--path", "request"], "--use-bio 1 is --path bio, but --path request was given"),
        (["bench", "--use-bio", "0", "--path", "bio"], "--use-bio 0 is --path request, but --path bio was given"),
        (["bench", "--verify", "md5"], "--verify 'md5'"),
        (["bench", "--slice", "0"], "--slice 0: give seconds, 0.01 or more"),
        (["bench", "--slice", "6"], "--slice 6: give no more than --runtime 5"),
        (["bench", "--slice", "x"], "--slice: 'x' is no number"),
        (["bench", "--runtime", "0", "--slice", "1"], "--slice 1: --runtime 0 is one pass"),
        (["bench", "--confidence", "100"], "--confidence 100"),
        (["bench", "--rate-iops", "0"], "--rate-iops: '0': give 1 or more"),
        (["bench", "--rate-iops", "many"], "--rate-iops: 'many' is no whole number"),
        (["bench", "--rate-iops", "5", "--iodepth-batch-submit", "2"], "--iodepth-batch-submit 2: with --rate-iops"),
        (["bench", "--queue", "scheduler"], "--queue 'scheduler': give KEY=VALUE"),
        (["bench", "--share-core", "--device-cpus", "0"], "leave out --device-cpus"),
        (["bench", "--preset", "fast"], "--preset: invalid choice: 'fast'"),
        (["bench", "--preset", "posting-ramdisk", "--bs", "100"], "--bs 100"),
        (["bench", "--compare", "a.json"], "--compare: expected 2 arguments"),
        (["bench", "--compare", "/nowhere/a", "/nowhere/b"], "--compare '/nowhere/a': No such file or directory"),
        (["bench", "ram:1m", "--compare", "a", "b"], "--compare runs nothing; leave out ram:1m"),
        (["bench", "--cpus-allowed", "a"], "--cpus-allowed 'a'"),
        (["bench", "--device-cpus", "99999"], "--device-cpus '99999': cpu 99999 is not available"),
        (["bench", "--device-pid", "0"], "--device-pid 0"),
        (["bench", "--device-pid", "99999999999"], "--device-pid 99999999999"),
        (["bench", "ram"], "disk 'ram'"),
        (["bench", "floppy:1440k"], "disk 'floppy:1440k': scheme 'floppy' is unknown"),
        (["bench", "sim:localhost"], "disk 'sim:localhost': profile 'localhost' is unknown (known: sata, fusion-io)"),
        (["bench", "ram:"], "disk 'ram:'"),
        (["bench", "ram:0"], "disk 'ram:0': size 0"),
        (["bench", "ram:1000"], "disk 'ram:1000'"),
        (["bench", "ram:1m?colour=red"], "unknown key 'colour'"),
        (["info", "ram:0"], "disk 'ram:0': size 0"),
        (["info", "ram"], "disk 'ram'"),
        (["info", "ram:1m", "--timeout", "0"], "--timeout 0: give seconds"),
        (["info", "ram:1m", "--timeout", "nan"], "--timeout: 'nan': give seconds"),
        (["info", "ram:1m", "--timeout", "soon"], "--timeout: 'soon' is no number"),
        (["info", "disk.img"], "write ram:512m, null:1g, file:/path/to/file or vhost-user:/path/to/socket"),
    ],
)
def test_wrong_usage_is_one_line_with_the_value_and_status_2(words: list[str], says: str, capsys: Capture) -> None:
    assert says in complaint(capsys, *words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bench", "--queue", "foo=1"], "--queue foo=1: ram:512m has no foo; it has nomerges, nr_requests, scheduler"),
        (["bench", "--queue", "scheduler=cfq"], "--queue scheduler=cfq: queue/scheduler 'cfq': give one of noop"),
        (["bench", "--queue", "nr_requests=-1"], "--queue nr_requests=-1: queue/nr_requests '-1': give 4 to"),
        (["bench", "--size", "100"], "--bs 4k is more than the range of 100"),
        (["bench", "ram:1m", "--bs", "2m"], "--bs 2m is more than the range of 1m"),
        (["bench", "ram:1m", "--size", "2m"], "--size 2m is more than ram:1m has (1m)"),
        (["bench", "--numjobs", "4096", "--iodepth", "65536", "--bs", "16m"], "4096.0t of buffers, and"),
        (["bench", "--rate-iops", "5", "--poll", "--numjobs", "500", "--iodepth", "1"], "--numjobs 500 polling on"),
    ],
)
def test_what_needs_no_device_is_refused_before_one_starts(
    words: list[str], says: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so before anything compiles."""
    monkeypatch.setattr("virtblk.bench.session.Session", None)
    assert says in complaint(capsys, *words)


def test_regression_a_number_that_is_none_is_not_named_after_our_function(capsys: Capture) -> None:
    assert "_int" not in complaint(capsys, "bench", "--iodepth", "many")


def test_no_command_is_the_help(capsys: Capture) -> None:
    assert main([]) == 2
    assert "usage: virtblk" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"usage: virtblk{' ' + words[0] if words[0] in COMMANDS else ''}")
    assert told.err == ""
    assert max(len(line) for line in told.out.splitlines()) <= 100


def test_help_names_every_scheme_and_path(capsys: Capture) -> None:
    for words, wanted in ((["--help"], KNOWN), (["bench", "--help"], (*KNOWN, "request, bio, mq, auto"))):
        with pytest.raises(SystemExit):
            main(words)
        text = " ".join(capsys.readouterr().out.split())
        assert [word for word in wanted if word not in text] == []


def test_help_names_all_options_of_the_issue(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    text = capsys.readouterr().out
    options = (
        "--rw --path --bs --iodepth --numjobs --size --runtime --ramp-time --iodepth-batch-submit --poll --no-poll "
        "--verify --randseed --queues --queue-size --timeout --cpus-allowed --device-cpus --device-pid --json "
        "--use-bio --poll-queues --slice --confidence --rate-iops --queue --share-core --preset --compare"
    )
    assert [option for option in options.split() if option not in text] == []
    for disk in ("ram:", "null:", "vhost-user:"):
        assert disk in text


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"virtblk {__version__}\n"


# Disks that nothing fits on.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["ram:1m?block_size=4k", "--bs", "512"],
            "--bs 512 is no multiple of the block size 4096 of ram:1m?block_size=4k",
        ),
        (["ram:64k", "--bs", "1m"], "--bs 1m is more than the range of 64k"),
        (["ram:1m", "--size", "2m"], "--size 2m is more than ram:1m has (1m)"),
        (["ram:1m", "--size", "1k"], "--bs 4k is more than the range of 1k"),
    ],
)
@pytest.mark.once
@pytest.mark.covers
def test_what_does_not_fit_the_disk_is_status_2(words: list[str], says: str, capsys: Capture) -> None:
    assert complaint(capsys, "bench", *words) == says


# Sockets with nothing behind them.


@pytest.mark.parametrize("command", [BENCH, INFO])
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "No such file or directory"),
        ("no directory", "No such file or directory"),
        ("plain file", "it is not a socket"),
        ("directory", "it is not a socket"),
        ("stale", "nobody listens there"),
        ("too long", "socket path of"),
    ],
)
def test_a_socket_that_is_none(kind: str, says: str, command: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "sock"
    if kind == "no directory":
        path = tmp_path / "none" / "sock"
    elif kind == "plain file":
        path.write_text("")
    elif kind == "directory":
        path.mkdir()
    elif kind == "too long":
        path = tmp_path / ("s" * 120)
    elif kind == "stale":
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(path))
    line = complaint(capsys, command, f"vhost-user:{path}")
    assert line.startswith(f"vhost-user:{path}: cannot connect: ")
    assert says in line


# Sockets with something else behind them.


def talk(client: socket.socket) -> None:
    client.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n")
    until_closed(client)


def hang_up(client: socket.socket) -> None:
    pass


def answer_half(client: socket.socket) -> None:
    client.recv(12)
    client.sendall(b"\x01\0\0\0\x05\0")


@pytest.mark.parametrize("command", [BENCH, INFO])
@pytest.mark.parametrize(
    ("serve", "says"),
    [
        (talk, "VHOST_USER_GET_FEATURES: "),
        (hang_up, "VHOST_USER_GET_FEATURES: the peer closed the connection; another client may hold it"),
        (answer_half, "VHOST_USER_GET_FEATURES: the peer closed the connection after 6 of 12 bytes of a header"),
        (until_closed, "VHOST_USER_GET_FEATURES: no answer within 0.2 s; another client may hold it"),
    ],
)
def test_a_server_that_is_no_device(serve: Any, says: str, command: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "sock"
    with server(path, serve):
        line = complaint(capsys, command, f"vhost-user:{path}", "--timeout", "0.2" if serve is until_closed else "60")
    assert line.startswith(f"vhost-user:{path}: ")
    assert says in line


@pytest.mark.parametrize("command", [BENCH, INFO])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"features": FEATURES & ~VERSION_1}, "does not offer VIRTIO_F_VERSION_1"),
        ({"features": VERSION_1}, "no blk config"),
        ({"protocol_features": PROTOCOL_FEATURES & ~(1 << 9)}, "no blk config"),
        ({"faults": {R.VHOST_USER_GET_CONFIG: Fault.REFUSE}}, "has no blk config"),
        ({"faults": {R.VHOST_USER_GET_CONFIG: Fault.CLOSE}}, "VHOST_USER_GET_CONFIG: the peer closed the connection"),
        ({"faults": {R.VHOST_USER_SET_FEATURES: Fault.SILENT}}, "VHOST_USER_SET_FEATURES: no answer within"),
        ({"faults": {R.VHOST_USER_SET_VRING_ADDR: Fault.CLOSE}}, "VHOST_USER_SET_VRING_ADDR: the peer closed"),
        ({"config": blk_config(capacity=0)}, "is smaller (0 bytes) than one block of 512"),
        ({"config": blk_config(capacity=4, blk_size=4096)}, "is smaller (2048 bytes) than one block of 4096"),
        ({"config": blk_config(blk_size=1000)}, "its block size is 1000"),
    ],
)
def test_a_device_that_is_no_disk(
    given: dict[str, Any], says: str, command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = Fault.SILENT in given.get("faults", {}).values()
    for seconds in ("0.2", "2", "20") if silent else ("60",):
        with FakeDevice(**given) as device:
            monkeypatch.setattr("virtblk.disk.Connection.connect", lambda path, timeout, device=device: device.client)
            line = complaint(capsys, command, "vhost-user:fake", "--timeout", seconds)
        assert line.startswith("vhost-user:fake")
        if says in line:  # unless the machine is so busy that an answer before the silence is late too
            break
    assert says in line


# --json.


@pytest.mark.parametrize("command", [BENCH, INFO])
@pytest.mark.parametrize(
    ("name", "says"), [("none/out.json", "there is no directory {!r}; make it first"), ("", "Is a directory")]
)
def test_regression_json_that_cannot_be_written_is_refused_before_the_run(
    name: str, says: str, command: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found out at the end, when the figures were lost."""
    monkeypatch.setattr("virtblk.disk.Connection.connect", None)
    target = f"{tmp_path}/{name}"
    line = complaint(capsys, command, "vhost-user:fake", "--json", target)
    assert line == f"--json {target!r}: {says.format(str(tmp_path / 'none'))}"


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "vhost-user:fake"],
        ["bench", "vhost-user:fake", "--sweep", "iodepth=1,2"],
        ["bench", "--compare", "a.json", "b.json"],
        ["check", "vhost-user:fake"],
        ["check", "--driver", "vhost-user:fake"],
        ["fuzz", "vhost-user:fake"],
        ["info", "vhost-user:fake"],
    ],
)
def test_regression_json_without_a_path_is_no_way_to_leave_it_out(words: list[str], capsys: Capture) -> None:
    """What a shell makes of a variable that is not set; the run was made, and nothing written."""
    assert complaint(capsys, *words, "--json", "") == "--json '': give the path of a file"


# Exceptions and exit status.


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("--bs 3: give 4"), 2, "virtblk: --bs 3: give 4"),
        (OpenError(errno.ENOENT, "disk: not there"), 2, "virtblk: disk: not there"),
        (DeviceError(errno.ENODEV, "disk: gone"), 1, "virtblk: disk: gone"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "virtblk: No space left on device"),
        (MemoryError("arena is full"), 1, "virtblk: arena is full"),
        (MemoryError(), 1, "virtblk: MemoryError"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_status(
    error: BaseException, status: int, line: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(options: Any) -> int:
        raise error

    monkeypatch.setattr("virtblk.cli.info.run", run)
    assert main(["info", "ram:1m"]) == status
    assert capsys.readouterr().err.strip() == line


def test_a_traceback_comes_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTBLK_TRACEBACK", "1")
    with pytest.raises(UsageError):
        main(["info", "ram"])


# Ctrl-C.


def test_regression_ctrl_c_while_an_error_is_told_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come a little later than it was sent, and then when the command is over."""

    def run(options: Any) -> int:
        raise OpenError(errno.ENODEV, "the device did not come up")

    def complain(error: BaseException, status: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("virtblk.cli.info.run", run)
    monkeypatch.setattr(cli, "_complain", complain)
    assert main(["info", "ram:1m"]) == 130


# As a program.


@pytest.mark.once
@pytest.mark.covers
def test_python_m_virtblk_is_the_same() -> None:
    assert virtblk("--version") == (0, f"virtblk {__version__}\n", "")
    status, out, err = virtblk("info", "ram")
    assert (status, out) == (2, "")
    assert err.startswith("virtblk: disk 'ram' has no scheme")
    assert "Traceback" not in err


@pytest.mark.once
@pytest.mark.covers
def test_wrong_usage_costs_no_numba() -> None:
    code = (
        "import sys; from virtblk.cli import main; main(['bench', '--bs', '3']); print(*{'numba'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "\n"


@pytest.mark.once
@pytest.mark.covers
def test_regression_a_reader_that_has_gone_is_no_traceback() -> None:
    """What was still in the buffer was written when the interpreter was on its way out, and failed there."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "virtblk", "info", "null:1m"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    os.close(write_end)
    assert run.returncode == 1
    assert re.sub(r"virtblk: compil.*\n", "", run.stderr) == ""


def test_commands_are_files_of_their_name() -> None:
    """Or parts of one: bench_fio is of bench. What commands have in common is in the others."""
    stems = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "interrupts", "option_values"}
    assert stems >= set(COMMANDS)
    assert {stem.partition("_")[0] for stem in stems} == set(COMMANDS)


def test_regression_ctrl_c_in_code_from_a_string_is_no_signal_at_exit(tmp_path: Path) -> None:
    """It ended some runs of `python -m virtblk` by SIGINT, in place of with exit status 130."""
    text = "import os, signal\nwhile True:\n    os.kill(os.getpid(), signal.SIGINT)"
    program = f"import sys\nfrom virtblk import cli\ncli._main = lambda words: exec({text!r})\nsys.exit(cli.main())\n"
    (tmp_path / "interrupted.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "interrupted"]
    assert subprocess.run(command, env=environment, check=False, timeout=60).returncode == 130
