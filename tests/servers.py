"""Environments that pip makes anew, and servers of models that run in them, on a port of this machine alone."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


def install(binaries: Path, requirements: Path, *options: str) -> None:
    """Install with the pip of an environment; skip the test where there is no network for it."""
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--no-compile", *options]
    ran = subprocess.run([*pip, "-r", str(requirements)], capture_output=True, text=True, check=False)
    unreachable = ("Failed to establish a new connection", "Temporary failure in name resolution", "timed out")
    if ran.returncode and any(sign in ran.stderr for sign in unreachable):
        pytest.skip("the package index can't be reached")
    assert ran.returncode == 0, ran.stderr


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def listening(words: Sequence[str], env: Mapping[str, str], ping: str, log: Path) -> Iterator[None]:
    """Run a server, from when it answers at `ping`; where `finetune` is not on the path."""
    clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k != "PYTHONPATH"}
    with log.open("w") as file:
        process = subprocess.Popen(
            words, env={**clean, **env}, cwd=log.parent, stdout=file, stderr=file, start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        while ask(ping)[0] != 200:
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def ask(address: str, body: Any = None) -> tuple[int, Any]:
    """(status, reply); status 0 where nobody listens."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(asked) as reply:
            return reply.status, json.loads(reply.read().strip() or "null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError:
        return 0, None
