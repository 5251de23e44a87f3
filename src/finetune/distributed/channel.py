"""A connection between two processes of a run, which believes nobody who does not know the secret of the run.

The main process sends a challenge; the other answers with its rank and a challenge of its own, and gets a welcome.
Whatever follows a challenge is sealed: an HMAC of the message, its sender and its number, with a key that is made of
the secret and the challenges. So nothing that was recorded is of use again. What this is good for, and what not, is in
docs/design.md.
"""

import hmac
import secrets
import socket
import threading
import time
from dataclasses import dataclass

CHALLENGE = 32  # bytes
SEAL = 32  # bytes of an HMAC with SHA-256
LENGTH = 4  # bytes in front of a message, which say how long it is
HOST = CHALLENGE + 4  # where, in a greeting, the name of the machine begins; before it, the rank
GREETING = 400  # bytes at most, from whoever connects
MESSAGE = 2**17  # bytes at most, from a process of the run
MAIN, OTHER = b"main", b"other"


class Channel:
    """A connection whose messages are sealed with a key; a message is read only where that and its place agree."""

    def __init__(self, connection: socket.socket, key: bytes, sender: bytes) -> None:
        self.connection = connection
        self._key = key
        self._sender = sender
        self._receiver = OTHER if sender == MAIN else MAIN
        self._sent = self._received = 0
        self._lock = threading.Lock()

    def send(self, body: bytes) -> None:
        """Send a message. Raises: OSError if the connection is lost."""
        with self._lock:
            seal = self._seal(self._sender, self._sent, body)
            self._sent += 1
            self.connection.sendall(len(body).to_bytes(LENGTH, "big") + seal + body)

    def receive(self, most: int, until: float | None = None) -> bytes:
        """Return the next message, of so many bytes at most.

        Raises: OSError if it isn't there at that monotonic time, is too long, or wasn't sealed by the other process.
        """
        head = _read(self.connection, LENGTH + SEAL, until)
        length = int.from_bytes(head[:LENGTH], "big")
        if length > most:
            raise ConnectionError("a message that is too long")
        body = _read(self.connection, length, until)
        if not hmac.compare_digest(head[LENGTH:], self._seal(self._receiver, self._received, body)):
            raise ConnectionError("a message that no process of the run has sealed")
        self._received += 1
        return body

    def drain(self, until: float) -> None:
        """Wait for the other process to close the connection."""
        try:
            while _read(self.connection, 1, until):
                pass
        except OSError:
            return

    def _seal(self, sender: bytes, number: int, body: bytes) -> bytes:
        return hmac.digest(self._key, sender + number.to_bytes(8, "big") + body, "sha256")


@dataclass(frozen=True)
class Guest:
    """A process that has shown that it is of the run, and who it says it is."""

    channel: Channel
    rank: int
    host: str


def admit(connection: socket.socket, secret: bytes, until: float) -> Guest:
    """Return who has connected to the main process; send the channel a message to welcome it.

    Raises: OSError if that is a stranger, or if all that it has to say isn't there in time.
    """
    challenge = secrets.token_bytes(CHALLENGE)
    connection.settimeout(max(0.001, until - time.monotonic()))
    connection.sendall(challenge)
    greeting = Channel(connection, _key(secret, challenge), MAIN).receive(GREETING, until)
    answer, rank, host = greeting[:CHALLENGE], greeting[CHALLENGE:HOST], greeting[HOST:]
    channel = Channel(connection, _key(secret, challenge + answer), MAIN)
    return Guest(channel, int.from_bytes(rank, "big"), host.decode(errors="replace"))


def greet(connection: socket.socket, secret: bytes, rank: int, host: str, until: float) -> Channel:
    """Return the channel to the main process, once that has welcomed this one.

    Raises: OSError if somebody else answers, or nobody in time.
    """
    challenge, answer = _read(connection, CHALLENGE, until), secrets.token_bytes(CHALLENGE)
    greeting = answer + rank.to_bytes(HOST - CHALLENGE, "big") + host.encode(errors="replace")[: GREETING - HOST]
    Channel(connection, _key(secret, challenge), OTHER).send(greeting)
    channel = Channel(connection, _key(secret, challenge + answer), OTHER)
    channel.receive(GREETING, until)
    return channel


def _key(secret: bytes, challenges: bytes) -> bytes:
    return hmac.digest(secret, challenges, "sha256")


def _read(connection: socket.socket, size: int, until: float | None) -> bytes:
    """Return exactly so many bytes. The time counts for all of them: a byte now and then is not enough."""
    data = bytearray()
    while len(data) < size:
        if until is not None:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("nothing whole came in time")
            connection.settimeout(left)
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the connection was closed")
        data += part
    return bytes(data)
