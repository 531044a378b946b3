"""A member that has a key and no manners: it sends whatever frames it is given, and then asks whether anybody lives."""

from __future__ import annotations

import time

import zmq

from routing import wire
from routing.client import DirectoryClient
from routing.links import Context
from routing.security import Identity, JoinToken
from tests.fuzz.mutation import Frames, plain

PATIENCE = 120.0  # s until a target that does not take or answer anything has hung
ASK_AGAIN = 0.5  # s


class Hung(AssertionError):
    """The target does not answer any more."""


def enrolled(token: JoinToken, name: str = "mallory") -> Identity:
    """The key pair of a new member."""
    identity = Identity.create()
    with DirectoryClient(token, identity, name):
        return identity


class Hostile:
    """One connection to `peer`, which listens on `address`."""

    def __init__(self, context: Context, identity: Identity, peer: str, address: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.rcvhwm = 0  # as in routing.links: libzmq must not stop reading
        self._socket.ipv6 = True
        self._socket.reconnect_ivl = 10  # an oversized frame costs the connection
        self._socket.curve_publickey = identity.public.encode()
        self._socket.curve_secretkey = identity.secret
        self._socket.curve_serverkey = peer.encode()
        self._socket.connect(f"tcp://{address}")
        self._asked = 1 << 20
        self.answers = 0

    def say(self, frames: Frames, patience: float = PATIENCE) -> None:
        """Raises: Hung: the target has taken nothing for so many seconds."""
        while self._socket.poll(0):
            self._socket.recv_multipart()
            self.answers += 1
        until = time.monotonic() + patience
        while not self._socket.poll(100, zmq.POLLOUT):
            while self._socket.poll(0):
                self._socket.recv_multipart()
                self.answers += 1
            if time.monotonic() > until:
                raise Hung(f"nothing was taken for {patience:g} s")
        self._socket.send_multipart(frames or [b""])

    def wait_handled(self) -> None:
        """Return once everything that was said has been read: a ping that came behind it is answered.

        Raises:
            Hung: it is not, for `PATIENCE` seconds.
        """
        self._asked += 1
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            self.say(plain(wire.encode(wire.Ping(self._asked))))
            again = time.monotonic() + ASK_AGAIN
            while (left := again - time.monotonic()) > 0 and self._socket.poll(left * 1000):
                self.answers += 1
                try:
                    message, _ = wire.decode(self._socket.recv_multipart())
                except wire.WireError:
                    continue
                if getattr(message, "request", 0) == self._asked:  # a refusal is an answer too
                    return
        raise Hung(f"no answer for {PATIENCE:g} s")

    def close(self) -> None:
        self._socket.close()
