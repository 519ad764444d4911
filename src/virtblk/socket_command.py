"""The command of `--exec`, which has {socket} where the path of a socket belongs (`check`, `fuzz`). Control context."""

from __future__ import annotations

import shlex

from virtblk.errors import UsageError


class SocketCommand:
    """A command line, split as a shell would. Raises UsageError for one without {socket}."""

    def __init__(self, text: str) -> None:
        try:
            self._words = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"--exec {text!r}: {error}") from None
        if not any("{socket}" in word for word in self._words):
            raise UsageError(f"--exec {text!r}: write {{socket}} where the socket's path belongs")

    def words(self, path: str) -> list[str]:
        """What to run for the socket at `path`."""
        return [word.replace("{socket}", path) for word in self._words]
