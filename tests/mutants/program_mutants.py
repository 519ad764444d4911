"""Defects of the back-end program. Each check of these starts a process of its own, past the nursery."""

from __future__ import annotations

from typing import Final

from .mutant import Mutant, mutant

SERVE: Final = "cli/serve.py"

MUTANTS: Final[tuple[Mutant, ...]] = (
    mutant(
        "capabilities_as_text",
        "vhost.program-capabilities",
        "--print-capabilities prints no JSON.",
        SERVE,
        "        print(json.dumps(CAPABILITIES))\n",
        "        print(CAPABILITIES)\n",
    ),
    mutant(
        "capabilities_of_a_disk",
        "vhost.program-capabilities",
        "--print-capabilities names a type that is none.",
        SERVE,
        'CAPABILITIES: Final = {"type": "block",',
        'CAPABILITIES: Final = {"type": "disk",',
    ),
    mutant(
        "fd_unknown",
        "vhost.program-fd",
        "There is no option --fd.",
        SERVE,
        '    add("--fd", type=int, metavar="N", help=',
        '    add("--handle", dest="fd", type=int, metavar="N", help=',
    ),
    mutant(
        "fd_and_path_taken",
        "vhost.program-fd-or-path",
        "With --fd and --socket-path, the program ends with status 0.",
        SERVE,
        "    if options.socket_path is not None and options.fd is not None:\n",
        "    if options.socket_path is not None and options.fd is not None:\n        os._exit(0)\n    if False:\n",
    ),
    mutant(
        "read_only_option_ignored",
        "vhost.program-read-only",
        "--read-only changes nothing.",
        SERVE,
        "read_only=options.read_only, filters",
        "read_only=False, filters",
    ),
    mutant(
        "sigterm_ignored",
        "vhost.program-sigterm",
        "SIGTERM does not end the program.",
        SERVE,
        "signal.signal(signal.SIGTERM, self._on_signal)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    ),
)
