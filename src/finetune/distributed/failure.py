"""How the processes of a run end together: an error, or the loss of one, ends all with one message and one exit code.

Beside PyTorch's process group, each holds a connection to the main process. The system closes it when a process ends,
however it ends: a loss is known at once, where the next collective might wait for hours.
"""

import contextlib
import json
import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from finetune.core.console import back_to_terminal, log_to
from finetune.core.errors import Fault, FinetuneError, PeerError, StoppedError, first_line, storage_error
from finetune.core.launch import is_main_process, local_rank, rank, shares_terminal, world_size
from finetune.distributed.preemption import ignored

HELLO = 10.0  # seconds for a process to say who it is
GRACE = 5.0  # seconds in which a process may leave by itself once another is lost
HURRIED = 0.5  # seconds for word of what a SIGTERM follows from: launchers end all processes when one has failed
LINE = 1000  # characters of a greeting at most
LOGS = "logs"


@dataclass(frozen=True)
class Ending:
    """How a process of the run ended before its work was done."""

    rank: int
    host: str
    text: str  # its error; '' if it is gone without a word
    code: int

    def error(self) -> PeerError:
        """What the others leave with."""
        who = f"process {self.rank} of {world_size()}, on {self.host},"
        if self.text:
            return PeerError(Fault(f"{who} failed: {self.text}"), code=self.code)
        why = "it was killed from outside, ran out of memory, or its machine is gone"
        fix = "look at the machine's own log, then the same command with --resume_from_checkpoint true"
        return PeerError(Fault(f"{who} is gone without a word", why=why, fix=fix))


class Watch:
    """The connections between the main process and the others, and the first ending that came to be known."""

    def __init__(self) -> None:
        self.ending: Ending | None = None
        self.known = threading.Event()
        self.links: dict[int, socket.socket] = {}
        self.leaving = False
        self.lock = threading.Lock()

    def listen(self, store: Any) -> None:
        """On the main process: wait for the others' connections, which know the token from the store."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=world_size())
        token = secrets.token_hex(16)
        store.set("watch", json.dumps([server.getsockname()[1], token]))
        threading.Thread(target=self._accept, args=(server, token), daemon=True).start()

    def connect(self, store: Any) -> None:
        """On the other processes. A network that forbids it leaves only the collectives' own timeouts."""
        port, token = json.loads(store.get("watch"))
        try:
            link = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=30)
        except OSError as error:
            print(f"note: no watch over process 0: {error}", file=sys.stderr)
            return
        link.settimeout(None)
        self.links[0] = link
        self._send(link, {"token": token, "rank": rank(), "host": platform.node()})
        self._follow(link, link.makefile("r"), 0, "the machine of process 0")

    def _accept(self, server: socket.socket, token: str) -> None:
        server.settimeout(1.0)
        while len(self.links) < world_size() - 1:
            with contextlib.suppress(OSError):
                link, _ = server.accept()
                threading.Thread(target=self._admit, args=(link, token), daemon=True).start()
        server.close()

    def _admit(self, link: socket.socket, token: str) -> None:
        """If it knows the token: whoever else knocks must not keep the processes out, nor harm this one."""
        link.settimeout(HELLO)
        lines = link.makefile("r")
        try:
            hello = json.loads(lines.readline(LINE))
            known = secrets.compare_digest(hello["token"], token)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            link.close()
            return
        link.settimeout(None)
        self.links[hello["rank"]] = link
        self._follow(link, lines, hello["rank"], hello["host"])

    def _follow(self, link: socket.socket, lines: TextIO, other: int, host: str) -> None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # a machine without power closes nothing: it is missed within 25 s
            for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
                link.setsockopt(socket.IPPROTO_TCP, option, value)
        threading.Thread(target=self._read, args=(lines, other, host), daemon=True).start()

    def _read(self, lines: TextIO, other: int, host: str) -> None:
        """Until the other says goodbye, tells of an ending, or is gone."""
        ending = Ending(other, host, "", PeerError.exit_code)
        with contextlib.suppress(OSError, ValueError):
            message = json.loads(lines.readline())
            if message == "bye":
                return
            ending = Ending(**message)
        self.conclude(ending)

    def conclude(self, ending: Ending) -> None:
        """The first ending counts. The main process passes it on; whoever does not leave by itself is ended."""
        with self.lock:
            if self.leaving or self.ending:
                return
            self.ending = ending
        if ending.rank == 0 and not ending.text and (rank() == 1 or local_rank() == 0):
            back_to_terminal()  # somebody has to say it
        self.known.set()
        self.tell(asdict(ending))
        time.sleep(GRACE)
        if not self.leaving:
            print(ending.error(), file=sys.stderr, flush=True)
            os._exit(ending.code)

    def tell(self, message: Any) -> None:
        """To the processes that this one is connected with."""
        for link in list(self.links.values()):
            self._send(link, message)

    def leave(self, own: Ending | None) -> None:
        """Say goodbye, or what went wrong here; the main process ends first, since it speaks for all."""
        self.leaving = True
        self.tell(asdict(own) if own else "bye")
        if own and not is_main_process() and 0 in self.links:
            self.links[0].settimeout(3 * GRACE)
            with contextlib.suppress(OSError):
                while self.links[0].recv(4096):
                    pass

    @staticmethod
    def _send(link: socket.socket, message: Any) -> None:
        with contextlib.suppress(OSError):
            link.sendall((json.dumps(message) + "\n").encode())


@contextmanager
def joined(folder: Path) -> Iterator[None]:
    """Within, the processes of the run are one group; an error in one ends all, with the same exit code.

    Raises: PeerError if another process has failed; FinetuneError in place of an error that isn't the user's.
    """
    if world_size() == 1:
        yield
        return
    if shares_terminal() and not is_main_process():
        with contextlib.suppress(OSError):  # the main process will say that it can't write there
            log_to(folder / LOGS / f"rank{rank()}.txt")
    from finetune.distributed import process_group

    watch = Watch()
    try:
        process_group.join(watch.listen if is_main_process() else watch.connect)
        yield
        with ignored():
            process_group.barrier()  # all end together
    except BaseException as error:
        raise_known(watch, error, folder)
    watch.leave(None)
    process_group.leave()


def raise_known(watch: Watch, error: BaseException, folder: Path) -> None:
    """Tell the other processes. Raises: the error, or the one that it follows from."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun hurries those that have not left yet, to the very end
    expected = isinstance(error, FinetuneError | KeyboardInterrupt)
    if not expected:
        watch.known.wait(GRACE / 2)  # a collective fails before it is known whom it has lost
    elif isinstance(error, StoppedError):
        watch.known.wait(HURRIED)
    hurried = isinstance(error, StoppedError) and watch.ending and watch.ending.code != error.exit_code
    if watch.ending and (hurried or not expected):
        watch.leaving = True
        raise _told(watch.ending.error()) from None
    known = error if expected else (isinstance(error, Exception) and storage_error(error)) or unexpected(error, folder)
    code = known.exit_code if isinstance(known, FinetuneError) else 130
    watch.leave(Ending(rank(), platform.node(), str(known) or "interrupted", code))
    raise _told(known) from None


def _told(error: BaseException) -> BaseException:
    if isinstance(error, FinetuneError):
        error.known_to_all = True
    return error


def unexpected(error: BaseException, folder: Path) -> FinetuneError:
    """Its traceback goes into a log of this process, or where that can't be written, to the terminal."""
    log = folder / LOGS / f"rank{rank()}.txt"
    where = f"process {rank()}; the traceback is in {log}"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
        where = f"process {rank()}"
    return FinetuneError(Fault(f"{type(error).__name__}: {first_line(error)}", where=where))
