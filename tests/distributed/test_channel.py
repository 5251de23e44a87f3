"""Strangers at the channel between the processes of a run: garbage, silence, recordings, one that knows the secret."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from finetune.core import errors, timing
from finetune.core.launch import LOOPBACK
from finetune.distributed import failure
from finetune.distributed.channel import CHALLENGE, GREETING, MESSAGE, SEAL, Channel, Guest, admit, greet

SECRET = bytes(range(32))


class Recorded(socket.socket):
    """A socket that keeps what is sent."""

    sent = b""

    def sendall(self, data: bytes, *_: int) -> None:  # type: ignore[override]
        self.sent += data
        super().sendall(data)


@pytest.fixture
def ends() -> Iterator[tuple[Recorded, Recorded]]:
    """Of a connection."""
    a, b = (Recorded(fileno=end.detach()) for end in socket.socketpair())
    with a, b:
        yield a, b


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def met(ends: tuple[Recorded, Recorded], secret: bytes = SECRET) -> tuple[Guest, Channel]:
    """The two sides of a channel; the secret is that of the one that greets."""
    with ThreadPoolExecutor() as pool:
        greeting = pool.submit(greet, ends[1], secret, 3, "there", soon())
        try:
            guest = admit(ends[0], SECRET, soon())
            guest.channel.send(b"welcome")
        except OSError:
            ends[0].close()
            assert isinstance(greeting.exception(), OSError)
            raise
        return guest, greeting.result()


def test_two_processes(ends: tuple[Recorded, Recorded]) -> None:
    guest, other = met(ends)
    assert (guest.rank, guest.host) == (3, "there")
    for message in (b"", b"one", b"x" * MESSAGE):
        with ThreadPoolExecutor() as pool:
            pool.submit(guest.channel.send, message)
            assert other.receive(MESSAGE, soon()) == message
            pool.submit(other.send, message)
            assert guest.channel.receive(MESSAGE, soon()) == message


def test_another_secret(ends: tuple[Recorded, Recorded]) -> None:
    with pytest.raises(ConnectionError, match="sealed"):
        met(ends, b"another")


@pytest.mark.parametrize("size", [0, 1, 35, 36, GREETING, 100_000])
@pytest.mark.parametrize("byte", [b"\0", b"\n", b"\xff"])
def test_garbage(ends: tuple[Recorded, Recorded], size: int, byte: bytes) -> None:
    ends[1].sendall(byte * size)
    ends[1].shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError):
        admit(ends[0], SECRET, soon())


def test_a_length_is_not_believed(ends: tuple[Recorded, Recorded]) -> None:
    """Nothing is waited for, or kept, that could not be a message."""
    ends[1].sendall((GREETING + 1).to_bytes(4, "big") + bytes(SEAL))
    with pytest.raises(ConnectionError, match="too long"):
        admit(ends[0], SECRET, soon())


def test_a_greeting_has_one_deadline(ends: tuple[Recorded, Recorded]) -> None:
    """However many bytes it is divided into."""
    done = threading.Event()

    def drip() -> None:
        while not done.wait(0.02):
            ends[1].sendall(b"\0")

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        admit(ends[0], SECRET, soon(0.3))
    assert time.monotonic() - began < 2
    done.set()
    thread.join()


def test_recordings(ends: tuple[Recorded, Recorded]) -> None:
    """Neither side believes what it said or heard in another connection."""
    met(ends)
    a, b = socket.socketpair()
    with a, b:
        b.sendall(ends[1].sent)
        with pytest.raises(ConnectionError, match="sealed"):
            admit(a, SECRET, soon())
    a, b = socket.socketpair()
    with a, b:
        a.sendall(ends[0].sent)  # challenge and welcome, by somebody in the place of the main process
        with pytest.raises(ConnectionError, match="sealed"):
            greet(b, SECRET, 3, "there", soon())


def again(frame: bytes) -> bytes:
    return frame


def changed(frame: bytes) -> bytes:
    return frame[:-1] + b"X"


@pytest.mark.parametrize("tampered", [again, changed])
def test_a_message_counts_once_and_as_it_was(
    ends: tuple[Recorded, Recorded], tampered: Callable[[bytes], bytes]
) -> None:
    guest, other = met(ends)
    ends[1].sent = b""
    other.send(b"message")
    frame = ends[1].sent
    assert guest.channel.receive(MESSAGE, soon()) == b"message"
    ends[1].sendall(tampered(frame))
    with pytest.raises(ConnectionError, match="sealed"):
        guest.channel.receive(MESSAGE, soon())


def test_a_message_does_not_come_back(ends: tuple[Recorded, Recorded]) -> None:
    guest, _ = met(ends)
    ends[1].sendall(ends[0].sent[CHALLENGE:])  # the welcome
    with pytest.raises(ConnectionError, match="sealed"):
        guest.channel.receive(MESSAGE, soon())


class Door:
    """Of a main process that waits for the others."""

    def __init__(self) -> None:
        self.main, store = failure.Peers(), HashStore()
        self.main.listen(store)
        self.address, self.port, secret, _ = json.loads(store.get("peers"))
        self.secret = bytes.fromhex(secret)
        self.inside: list[Channel] = []

    def knock(self) -> socket.socket:
        return socket.create_connection((LOOPBACK, self.port), timeout=5)

    def there(self) -> dict[int, Channel]:
        with self.main.lock:
            return {**self.main.connections}

    def enter(self, rank: int) -> None:
        self.inside.append(greet(self.knock(), self.secret, rank, "there", soon()))


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """Of a run of three; nobody who comes to it can end this process."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(failure.Peers, "conclude", lambda *_: pytest.fail("an ending"))
    door = Door()
    yield door
    for rank in {1, 2} - {*door.there()}:  # which ends the threads
        door.enter(rank)
    for channel in door.inside:
        channel.send(failure.DONE)
        channel.connection.close()


@pytest.mark.parametrize("greeting", [b"", b"hello\n", b"\n", b"x" * 5000, b"\0" * 40, b"\xff 1 here\n"])
def test_strangers_at_the_door(door: Door, greeting: bytes) -> None:
    """They are turned away, and keep no process of the run out."""
    with door.knock() as stranger:
        stranger.sendall(greeting)
        door.enter(1)
        door.enter(2)
        assert {*door.there()} == {1, 2}


def test_only_who_is_missing_comes_in(door: Door) -> None:
    door.enter(1)
    first = door.there()[1]
    for rank in (0, 1, 3, 2**32 - 1):
        with pytest.raises(OSError):
            door.enter(rank)
    door.enter(2)
    assert {*door.there()} == {1, 2} and door.there()[1] is first


def test_a_crowd_of_silent_strangers(monkeypatch: pytest.MonkeyPatch, door: Door) -> None:
    """Takes no more threads than a few, and none for longer than a greeting; a process gets in all the same."""
    monkeypatch.setattr(failure, "STRANGERS", 4)
    monkeypatch.setattr(timing, "GREETING", 1.0)
    before = threading.active_count()
    crowd = [door.knock() for _ in range(60)]
    door.enter(1)
    assert threading.active_count() - before <= 3 + 4 + 2  # that one is followed, and one may be about to go
    end = soon()
    while door.main.strangers and time.monotonic() < end:
        time.sleep(0.02)
    assert not door.main.strangers
    for stranger in crowd:
        stranger.close()


def test_a_run_on_one_machine_is_not_heard_outside(door: Door) -> None:
    assert door.address == LOOPBACK
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", door.port))  # another address of this machine


def test_one_who_comes_late_is_told(door: Door) -> None:
    door.main.ending = failure.Ending(2, "elsewhere", "data error: x", 3)
    door.enter(1)
    told = failure.Ending.read(door.inside[0].receive(MESSAGE, soon()), range(3))
    assert told == door.main.ending


def an_ending(**changed: object) -> bytes:
    return json.dumps({"rank": 1, "host": "there", "text": "text", "code": 3, **changed}).encode()


@pytest.mark.parametrize(
    "message",
    [
        *(an_ending(code=code) for code in (0, -1, 12, 137, 256, 2**64, "3", 3.0, None)),
        *(an_ending(rank=rank) for rank in (0, 2, -1, "1", None)),
        an_ending(text=None),
        an_ending(host=["there"]),
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * MESSAGE,
        b"1" * MESSAGE,
    ],
    ids=lambda message: message[:70].decode(errors="replace"),
)
def test_what_is_no_ending_is_not_believed(message: bytes) -> None:
    assert failure.Ending.read(an_ending(), {1}).code == 3
    with pytest.raises(ValueError):
        failure.Ending.read(message, {1})


def test_every_ending_can_be_told() -> None:
    classes = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FinetuneError)
    ]
    assert {kind.exit_code for kind in classes} | {failure.INTERRUPTED} == failure.CODES and len(classes) == 11
    assert 0 not in failure.CODES
    for text in ("one\n  fix: two\n", "\udc80", "\U0001f600" * 100_000):
        message = failure.Ending(1, "there", text, 3).written()
        assert len(message) < MESSAGE
        assert failure.Ending.read(message, {1}).text.startswith(text[:1000])


def test_what_others_say_is_shown_and_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = failure.Ending(1, "the\x07re", "data error: \x1b]0;title\x07 \u202e\r\udc80 Ärger 日本\n  fix: this", 3)
    said = str(ending.error())
    assert said.endswith(
        "on the\\x07re, failed: data error: \\x1b]0;title\\x07 \\u202e\\r\\udc80 Ärger 日本\n  fix: this"
    )
