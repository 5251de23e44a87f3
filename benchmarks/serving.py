"""The latency of served models: by `mlflow models serve`, each asked by 1, 4 and 16 clients in turn, and its memory.

    .venv/bin/python benchmarks/serving.py MLFLOW_MODEL [MLFLOW_MODEL ...] [--requests 10000] [--out FILE.json]

MLFLOW_MODEL is the mlflow_model_folder of a run of question answering, or mlflow_model of an export, with a name before
it if wanted: `int8=out/openvino/mlflow_model`. All servers are up at once, one thread each, and are asked in turns of
10 seconds, five for each number of clients, one question of the bundled sample at a time. Then each is asked so many
requests in a row, between whose tenths its memory is read, and one question about 100,000 characters.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "examples" / "question_answering" / "test.jsonl"
CLIENTS, TURNS, SECONDS = (1, 4, 16), 5, 10.0
LONG = 100_000  # characters
LINE = "{model:12} {clients:7} {p50_ms:8.1f} {p95_ms:8.1f} {requests_per_second:10.1f}"


@dataclass(frozen=True)
class Server:
    """A model that is served: where it is asked, and its process."""

    name: str
    port: int
    process: "subprocess.Popen[bytes]"

    def ask(self, row: dict[str, str]) -> float:
        """Return the seconds of one request. Raises: an error if it isn't answered."""
        body = json.dumps({"dataframe_records": [row]}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/invocations", body, {"Content-Type": "application/json"}
        )
        started = time.perf_counter()
        with _direct().open(request, timeout=600) as reply:
            reply.read()
        return time.perf_counter() - started

    def memory(self) -> float:
        """Return the MB that its processes hold, what they share counted once for each."""
        main = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in (main, *main.children(recursive=True))) / 1e6


def _direct() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def served(name: str, model: Path, log: Path) -> Iterator[Server]:
    """Serve a model, from when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DEFAULT_PREDICTION_DEVICE": "cpu"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # where uvicorn is
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "-p", str(port)], stdout=file, stderr=file, env=env, start_new_session=True
        )
    started = time.monotonic()
    try:
        while True:
            with suppress(OSError), _direct().open(f"http://127.0.0.1:{port}/ping", timeout=5):
                break
            if process.poll() is not None:
                sys.exit(f"{name} is not served; the end of {log}:\n{log.read_text()[-1000:]}")
            time.sleep(0.2)
        print(f"{name}: answers {time.monotonic() - started:.1f} s after its start", flush=True)
        yield Server(name, port, process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def turn(server: Server, rows: Sequence[dict[str, str]], clients: int, seconds: float) -> list[float]:
    """Return the seconds of each request of so many clients, each of which asks again as soon as it is answered."""
    times: list[float] = []
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        asked = number
        while time.monotonic() < until:
            times.append(server.ask(rows[asked % len(rows)]))
            asked += clients

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def latencies(servers: Sequence[Server], rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Return p50, p95 and requests a second of each server and number of clients, medians over turns."""
    found = []
    for clients in CLIENTS:
        turns: dict[str, list[list[float]]] = {server.name: [] for server in servers}
        for server in servers:
            turn(server, rows, clients, 2)  # what is made at the first request
        for _ in range(TURNS):
            for server in servers:
                turns[server.name].append(turn(server, rows, clients, SECONDS))
        for name, measured in turns.items():
            quantiles = [statistics.quantiles(times, n=20) for times in measured]
            row = {
                "model": name,
                "clients": clients,
                "p50_ms": 1e3 * statistics.median(one[9] for one in quantiles),
                "p95_ms": 1e3 * statistics.median(one[18] for one in quantiles),
                "requests_per_second": statistics.median(len(times) / SECONDS for times in measured),
            }
            print(LINE.format(**row), flush=True)
            found.append(row)
    return found


def endurance(server: Server, rows: Sequence[dict[str, str]], requests: int) -> dict[str, Any]:
    """Return the memory of a server after each tenth of so many requests, and the time of a very long context."""
    memory = []
    for _ in range(10):
        for number in range(requests // 10):
            server.ask(rows[number % len(rows)])
        memory.append(round(server.memory()))
    context = " ".join(row["context"] for row in rows)
    context = (context * (LONG // len(context) + 1))[:LONG]
    seconds = server.ask({"question": rows[0]["question"], "context": context})
    print(f"{server.name}: MB after each tenth of {requests:,} requests {memory}")
    print(
        f"{server.name}: {seconds:.1f} s for a context of {LONG:,} characters, then {server.memory():.0f} MB",
        flush=True,
    )
    return {"model": server.name, "memory_mb": memory, "long_context_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MLFLOW_MODEL")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("out/serving.json"))
    given = parser.parse_args()
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    rows = [{"question": row["question"], "context": row["context"]} for row in rows]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers = []
        for word in given.models:
            name, _, path = word.rpartition("=")
            log = given.out.with_name(f"serving_{len(servers)}.log")
            servers.append(stack.enter_context(served(name or Path(path).name, Path(path), log)))
        print("model        clients   p50 ms   p95 ms  requests/s")
        found = {
            "latency": latencies(servers, rows),
            "endurance": [endurance(server, rows, given.requests) for server in servers],
        }
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
