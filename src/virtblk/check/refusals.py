"""What the checks of unsound vhost-user messages have in common: each is to be refused, and to do no harm.

A refusal is an acknowledgement other than 0, or the end of the session, be it after an acknowledgement of 0 (that this
is wrong in itself is what `vhost.ack-failure` says); the next message goes to a new session then. A check returns `how`
where its clause demands the refusal, and ends with `Rejected(how)` where the clause only forbids front ends to send it.
Called by the checks of messages, memory, rings and descriptors, on their thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from virtblk.check.peer import Gone
from virtblk.check.requirement import Failed, Rejected
from virtblk.check.runner import Tester
from virtblk.check.session import Session

#: A device that does not offer REPLY_ACK can only close the session, or keep silent about what it did.
_UNKNOWN = "not acted upon, as far as one can tell without REPLY_ACK"


class Refusals:
    """Unsound messages, one after the other; `options` are those of the sessions that take them."""

    def __init__(self, t: Tester, **options: Any) -> None:
        self._t, self._options = t, options
        self._session: Session | None = None
        self._ways: list[str] = []

    @property
    def session(self) -> Session:
        """One that is alive."""
        if self._session is not None and self._session.peer.gone():
            self._session.close()
            self._session = None
        if self._session is None:
            self._session = self._t.session(**self._options)
        return self._session

    def send(self, what: str, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A message that must be refused. Failed, with `what` it was, if it is acknowledged with 0 and that is all."""
        peer = self.session.peer
        way = peer.refusal(request, payload, fds)
        if way is None:
            try:
                peer.get_features()
            except Gone:
                way = "acknowledged with 0, and the session was closed"
        if way is None and peer.reply_ack:
            raise Failed(f"{what} was acknowledged with 0")
        way = way or _UNKNOWN
        if way not in self._ways:
            self._ways.append(way)

    @property
    def how(self) -> str:
        """They were refused, all of them."""
        return "; ".join(self._ways)

    def end(self) -> NoReturn:
        """They were refused, all of them, and need not have been."""
        raise Rejected(self.how)
