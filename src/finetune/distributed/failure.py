"""End the processes of a run together: an error, or the loss of one, ends all with one message and one exit code.

Beside PyTorch's process group, each process has a TCP connection to the main one. The kernel closes it when a process
ends, however it ends, and answers for one that is busy or paused. A process that is alive and does nothing is noticed
by what each tells of its progress over the same connections (hangs/). Why it is so is in docs/design.md.
"""

import contextlib
import json
import math
import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from finetune.core import timing
from finetune.core.console import back_to_terminal, log_head, log_to, printable, refuse_other_log
from finetune.core.errors import Fault, FinetuneError, PeerError, StoppedError, first_line, storage_error
from finetune.core.launch import (
    LOOPBACK,
    is_main_process,
    local_rank,
    on_one_machine,
    rank,
    shares_terminal,
    world_size,
)
from finetune.distributed.channel import MESSAGE, Channel, admit, greet
from finetune.distributed.hangs import pulse, stacks
from finetune.distributed.hangs.pulse import State
from finetune.distributed.hangs.verdict import Hang
from finetune.distributed.hangs.watching import watched
from finetune.distributed.preemption import ignored

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

LOGS = "logs"
AGAIN = "the same command with --resume_from_checkpoint true"
HUNG = f"{AGAIN}; with a higher --hang_timeout if it was only slow"
STRANGERS = 64  # that may be connected at once, besides the processes of the run
DONE = b"done"
TEXT = 8_000  # characters of an error that the others are told; all of it stands in the log of the process
INTERRUPTED = 130
# No other code is believed: 0 would make a success of a failed run.
CODES = {INTERRUPTED, FinetuneError.exit_code, *(kind.exit_code for kind in FinetuneError.__subclasses__())}


@dataclass(frozen=True)
class Ending:
    """The way in which a process of the run ended before its work was done."""

    rank: int
    host: str
    text: str = ""  # its error; '' if it was lost
    code: int = PeerError.exit_code
    hung: bool = False  # and then the text says where

    @classmethod
    def read(cls, message: bytes, ranks: Collection[int]) -> "Ending":
        """Return what a process tells, which may speak for the ranks. Raises: ValueError if it is no such ending."""
        try:
            values = json.loads(message)
        except RecursionError:
            values = None
        match values:
            case {"rank": int(rank), "host": str(host), "text": str(text), "code": int(code)} if rank in ranks:
                if code in CODES:
                    return cls(rank, host, text, code, values.get("hung") is True)
        raise ValueError("this is no ending of a process")

    def written(self) -> bytes:
        """Return the message that `read` reads."""
        text = self.text if len(self.text) <= TEXT else f"{self.text[:TEXT]} …"
        return json.dumps({**asdict(self), "text": text}).encode()

    def error(self) -> PeerError:
        """Return the error that the others leave with."""
        who = f"process {self.rank} of {world_size()}, on {printable(self.host)},"
        if self.hung:
            why = "what it waits for does not come, or it was stopped; the stacks above, and those in logs/, say where"
            return PeerError(Fault(f"{who} hangs: {printable(self.text)}", why=why, fix=HUNG))
        if self.text:
            return PeerError(Fault(f"{who} failed: {printable(self.text)}"), code=self.code)
        why = "it was killed from outside, ran out of memory, or its machine is gone"
        fix = f"look at the system log of that machine, then run {AGAIN}"
        return PeerError(Fault(f"{who} was lost without an error message", why=why, fix=fix))


class Peers:
    """The connections between the main process and the others, and the first ending that became known."""

    def __init__(self) -> None:
        self.connections: dict[int, Channel] = {}  # by rank
        self.strangers: list[socket.socket] = []  # that have not shown yet who they are, the oldest first
        self.hosts = {rank(): platform.node()}
        self.told: dict[int, State] = {}  # the progress of each, until the watching thread takes it
        self.ending: Ending | None = None
        self.known = threading.Event()
        self.leaving = False
        self.lock = threading.Lock()

    def listen(self, store: "Store") -> None:
        """Wait, on the main process, for the others, which find address and secret in the store."""
        address = LOOPBACK if on_one_machine() else ""
        dual = not address and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        backlog = world_size() + STRANGERS
        server = socket.create_server((address, 0), family=family, dualstack_ipv6=dual, backlog=backlog)
        secret = secrets.token_bytes(32)
        store.set("peers", json.dumps([address, server.getsockname()[1], secret.hex(), platform.node()]))
        threading.Thread(target=self._accept, args=(server, secret), daemon=True).start()

    def connect(self, store: "Store") -> None:
        """Connect another process to the main one. If the network forbids it, only timeouts of collectives are left."""
        address, port, secret, host = json.loads(store.get("peers"))
        until = time.monotonic() + timing.CONNECT
        try:
            connection = socket.create_connection((address or os.environ["MASTER_ADDR"], port), timeout=timing.CONNECT)
            main = greet(connection, bytes.fromhex(secret), rank(), platform.node(), until)
        except OSError as error:
            print(f"note: no connection to process 0, whose loss will be noticed late: {error}", file=sys.stderr)
            return
        self.connections[0] = main  # from here on the main process tells this one of any error
        threading.Thread(target=self._follow, args=(main, 0, host), daemon=True).start()

    def _accept(self, server: socket.socket, secret: bytes) -> None:
        """Let the processes in. Strangers are turned away, and of many that keep silent, the oldest."""
        server.settimeout(1.0)
        until = time.monotonic() + timing.JOIN
        while len(self.connections) < world_size() - 1 and time.monotonic() < until:
            try:
                stranger = server.accept()[0]
            except OSError:
                continue
            with self.lock, contextlib.suppress(OSError):
                self.strangers.append(stranger)
                if len(self.strangers) > world_size() + STRANGERS:
                    self.strangers.pop(0).shutdown(socket.SHUT_RDWR)
            threading.Thread(target=self._admit, args=(stranger, secret), daemon=True).start()
        server.close()

    def _admit(self, stranger: socket.socket, secret: bytes) -> None:
        """Follow a process that has shown that it is of the run, and isn't here yet."""
        try:
            guest = admit(stranger, secret, time.monotonic() + timing.GREETING)
        except OSError:
            guest = None
        with self.lock:
            if stranger in self.strangers:
                self.strangers.remove(stranger)
            missing = set(range(1, world_size())) - {*self.connections}
            if guest is None or guest.rank not in missing:
                stranger.close()
                return
            self._send(guest.channel, b"welcome")
            self.connections[guest.rank] = guest.channel
            ending = self.ending
        if ending:
            self._send(guest.channel, ending.written())
        self._follow(guest.channel, guest.rank, guest.host)

    def _follow(self, peer: Channel, other: int, host: str) -> None:
        """Follow the other process until it says that it is done, tells of an ending, or is lost."""
        keep_watch(peer.connection)
        self.hosts[other] = host
        self.told.setdefault(other, replace(pulse.state(), rank=other))  # it is here; it may never say a word
        ending = Ending(other, host)
        with contextlib.suppress(OSError, ValueError):
            while state := State.read(told := peer.receive(MESSAGE)):
                self.told[other] = state
            if told == DONE:
                return
            ending = Ending.read(told, {other} if is_main_process() else range(world_size()))
        self.conclude(ending)

    def conclude(self, ending: Ending) -> None:
        """Keep the first ending. The main process passes it on; a process that does not leave by itself is ended."""
        with self.lock:
            if self.leaving or self.ending:
                return
            self.ending = ending
        if ending.rank == 0 and (ending.hung or not ending.text) and (rank() == 1 or local_rank() == 0):
            back_to_terminal()  # which process 0 no longer writes to
        self.known.set()
        self.tell(ending.written())
        if ending.hung:
            stacks.in_time(stacks.show, timing.SHOWN)
        time.sleep(timing.LEAVE)
        if not self.leaving:
            stacks.in_time(lambda: print(ending.error(), file=sys.stderr, flush=True), timing.SHOWN)
            stacks.end_workers()
            os._exit(ending.code)

    def end_hung(self, hang: Hang) -> None:
        """End the run, of which a process hangs."""
        first = hang.ranks[0]
        self.conclude(Ending(first, self.hosts.get(first, "an unknown machine"), str(hang), hung=True))

    def tell(self, message: bytes) -> None:
        """Send a message to the processes that this one is connected with."""
        with self.lock:  # one that is just being welcomed relies on it
            peers = list(self.connections.values())
        for peer in peers:
            self._send(peer, message)

    def leave(self, own: Ending | None) -> None:
        """Tell the others that all is done, or what failed here; the main process, which speaks for all, ends first."""
        self.leaving = True
        self.tell(own.written() if own else DONE)
        if own and not is_main_process() and 0 in self.connections:
            self.connections[0].drain(time.monotonic() + timing.SPEAK)

    @staticmethod
    def _send(peer: Channel, message: bytes) -> None:
        with contextlib.suppress(OSError):
            peer.send(message)


def keep_watch(connection: socket.socket) -> None:
    """Let the kernel close a connection to a machine that is gone, which closes nothing.

    Its probes go out where nothing is sent; where something is, as progress is all the time, it waits for that to be
    taken, by its own default for a quarter of an hour.
    """
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    for option, value in zip(options, (*timing.KEEPALIVE, int(1000 * timing.ACKNOWLEDGED)), strict=True):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


@contextmanager
def joined(folder: Path, hang_timeout: float) -> Iterator[None]:
    """Make the processes of the run one group within; an error in one ends all, with the same exit code.

    So does a process that makes no progress for so many minutes, also where it is alone; 0 means any time.
    Raises: PeerError if another process has failed; FinetuneError in place of an error that isn't the user's.
    """
    peers = Peers()
    with watched(hang_timeout, peers.told, lambda state: peers.tell(state.written()), peers.end_hung):
        if world_size() == 1:
            yield
        else:
            with _group(peers, folder):
                yield


@contextmanager
def _group(peers: Peers, folder: Path) -> Iterator[None]:
    if shares_terminal() and not is_main_process():
        with contextlib.suppress(OSError):  # the main process will say that it can't write there
            log_to(folder / LOGS / f"rank{rank()}.txt")
    from finetune.distributed import process_group

    patience = 1.25 * pulse.longest_limit() if math.isfinite(pulse.longest_limit()) else 0.0
    try:
        process_group.join(peers.listen if is_main_process() else peers.connect, patience)
        pulse.reach()
        yield
        with ignored():
            process_group.barrier()  # all end together
    except BaseException as error:
        end_together(peers, error, folder)
    peers.leave(None)
    process_group.leave()


def end_together(peers: Peers, error: BaseException, folder: Path) -> NoReturn:
    """Tell the other processes of the error, and raise it, or that of another process which it follows from."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun hurries those that have not left yet, to the very end
    stopped = isinstance(error, StoppedError)
    expected = isinstance(error, FinetuneError | KeyboardInterrupt)
    if stopped or not expected:
        peers.known.wait(timing.HURRIED if stopped else timing.KNOWN)
    first = peers.ending
    if first and (not expected or (stopped and first.code != StoppedError.exit_code)):
        peers.leaving = True
        known: BaseException = first.error()
    else:
        of_disk = storage_error(error) if isinstance(error, Exception) else None
        known = error if expected else of_disk or unexpected(error, folder)
        code = known.exit_code if isinstance(known, FinetuneError) else INTERRUPTED
        peers.leave(Ending(rank(), platform.node(), str(known) or "interrupted", code))
    if isinstance(known, FinetuneError):
        known.known_to_all = True
    raise known from None


def unexpected(error: BaseException, folder: Path) -> FinetuneError:
    """Return the error to raise; its traceback goes into a log of this process, or to the terminal if that can't be."""
    log = folder / LOGS / f"rank{rank()}.txt"
    where = f"process {rank()}; the traceback is in {log}"
    try:
        refuse_other_log(log)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            print(log_head(), file=file)
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
        where = f"process {rank()}"
    return FinetuneError(Fault(f"{type(error).__name__}: {first_line(error)}", where=where))
