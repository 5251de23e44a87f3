"""Run a pipeline component YAML on this machine, step by step, as Azure ML would.

    finetune pipeline components/question_answering/pipeline.yaml --set train_file_path=train.jsonl --output out

What runs is each component's own `command:`, in a snapshot of its code. A step whose inputs and code are unchanged is
skipped. Everything lies under --output: the pipeline's outputs, steps/JOB/ with the other outputs and the logs.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from finetune.errors import Fault, ParameterError, StepError, run_main
from finetune.graph import Pipeline, Step, fill_command, load_pipeline, needs, parent_output, resolve
from finetune.schema import did_you_mean
from finetune.snapshot import build

USAGE = """usage: finetune pipeline FILE --output FOLDER [--set NAME=VALUE ...] [--force]

FILE             a pipeline component YAML
--output FOLDER  where everything is written; run again with the same folder to skip finished steps
--set NAME=VALUE an input of the pipeline; --set may be repeated, or take several
--force          run every step, finished or not
"""
GRACE = 15.0  # seconds between asking processes to end and ending them


@dataclass(frozen=True)
class Words:
    """The command line of the runner."""

    file: Path
    output: Path
    values: dict[str, str]
    force: bool


@dataclass(frozen=True)
class Done:
    """What became of one step."""

    step: str
    status: str  # ran or unchanged
    seconds: float
    log: Path


def main(argv: list[str]) -> None:
    if not argv or "--help" in argv or "-h" in argv:
        print(USAGE, end="")
        return
    words = read_words(argv)
    pipeline = load_pipeline(words.file)
    inputs = pipeline_inputs(pipeline, words.values)
    run(pipeline, inputs, words.output, words.force)


def read_words(argv: list[str]) -> Words:
    """Raises: ParameterError."""
    faults: list[Fault] = []
    values: dict[str, str] = {}
    file = output = None
    option, force = "", False
    for word in argv:
        if word in ("--set", "--output"):
            option = word
        elif word == "--force":
            option, force = "", True
        elif word.startswith("--output="):
            output = word.removeprefix("--output=")
        elif word.startswith("--"):
            faults.append(Fault(f"unknown option {word}{did_you_mean(word, ('--set', '--output', '--force'))}"))
        elif option == "--output":
            output, option = word, ""
        elif option == "--set" and "=" in word:
            name, _, value = word.partition("=")
            values[name] = value
        elif file is None and option == "":
            file = word
        else:
            faults.append(Fault(f"unexpected word {word!r}", fix="--set NAME=VALUE"))
    if file is None:
        faults.append(Fault("no pipeline file is given", fix="finetune pipeline FILE --output FOLDER"))
    if output is None:
        faults.append(Fault("--output is missing", fix="--output out"))
    if faults:
        raise ParameterError(*faults)
    return Words(Path(str(file)), Path(str(output)).resolve(), values, force)


def pipeline_inputs(pipeline: Pipeline, values: dict[str, str]) -> dict[str, str | None]:
    """Every input's value as text, paths made absolute; None where an optional one has none. Raises: ParameterError."""
    faults = []
    texts = {name: p.default_text for name, p in pipeline.inputs.items()}
    for name, text in values.items():
        if name not in pipeline.inputs:
            faults.append(Fault(f"the pipeline has no input {name!r}{did_you_mean(name, list(pipeline.inputs))}"))
            continue
        try:
            pipeline.inputs[name].convert(text)
        except ValueError as error:
            faults.append(Fault(f"--set {name}={text} {error}"))
        texts[name] = text
        if pipeline.inputs[name].is_port:
            texts[name] = str(Path(text).resolve())
            if not Path(text).exists():
                faults.append(
                    Fault(f"--set {name}={text}: there is no such file or folder", where=str(Path(text).resolve()))
                )
    for name, p in pipeline.inputs.items():
        if p.required and texts[name] is None:
            faults.append(Fault(f"input {name} is missing", why=p.doc, fix=f"--set {name}=<{p.kind}>"))
    if faults:
        raise ParameterError(*faults)
    return texts


def run(pipeline: Pipeline, inputs: dict[str, str | None], output: Path, force: bool = False) -> list[Done]:
    """Run the steps in order. Raises: StepError when one fails; the steps before it stay finished."""
    output.mkdir(parents=True, exist_ok=True)
    folders = {(s.name, name): output_folder(output, s, name) for s in pipeline.steps for name in s.outputs}
    keys: dict[str, str] = {}
    done: list[Done] = []
    for number, step in enumerate(pipeline.steps, start=1):
        print(f"--- {number}/{len(pipeline.steps)} {step.name}", flush=True)
        values = {name: resolve(text, inputs, folders) for name, text in step.bound_inputs.items()}
        values = {
            name: values.get(name) if values.get(name) is not None else p.default_text
            for name, p in step.inputs.items()
        }
        outputs = {name: str(folders[step.name, name]) for name in step.outputs}
        code = snapshot(step, output)
        command = fill_command(step.component["command"], values, outputs)
        nodes, processes = process_counts(step, inputs)
        keys[step.name] = step_key(
            command, code, [keys[name] for name in sorted(needs(step))], input_files(step, values), nodes * processes
        )
        home = output / "steps" / step.name
        record = home / "step.json"
        log = home / "log.txt"
        if not force and finished(record, keys[step.name], outputs, step):
            print("unchanged, skipped", flush=True)
            done.append(Done(step.name, "unchanged", 0.0, log))
            continue
        record.unlink(missing_ok=True)
        for folder in (home, *map(Path, outputs.values())):
            folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        execute(step.name, command, code, nodes, processes, log, output)
        seconds = time.perf_counter() - started
        record.write_text(json.dumps({"key": keys[step.name], "seconds": seconds, "command": command}, indent=2) + "\n")
        done.append(Done(step.name, "ran", seconds, log))
    summarize(pipeline, done, output)
    return done


def output_folder(output: Path, step: Step, name: str) -> Path:
    """A step's output lies under the name of the pipeline output that it is bound to, else in the step's own folder."""
    bound = parent_output(step.bound_outputs.get(name, ""))
    return output / bound if bound else output / "steps" / step.name / name


def snapshot(step: Step, output: Path) -> Path:
    """The step's code, as Azure ML would upload it."""
    includes = [(step.folder / text).resolve() for text in step.component.get("additional_includes", [])]
    return build((step.folder / step.component["code"]).resolve(), includes, output / "steps" / "snapshot")


def process_counts(step: Step, inputs: dict[str, str | None]) -> tuple[int, int]:
    """(machines, processes on each), from the job's or the component's resources and distribution."""
    resources = {**step.component.get("resources", {}), **step.settings.get("resources", {})}
    distribution = {**step.component.get("distribution", {}), **step.settings.get("distribution", {})}

    def count(value: Any) -> int:
        return int(resolve(str(value), inputs, {}) or 1)

    return count(resources.get("instance_count", 1)), count(distribution.get("process_count_per_instance", 1))


def input_files(step: Step, values: dict[str, str | None]) -> list[str]:
    """A digest of each file or folder handed in from outside the pipeline."""
    from_steps = {name for name, text in step.bound_inputs.items() if ".jobs." in text}
    ports = [name for name, p in step.inputs.items() if p.is_port and name not in from_steps]
    return [digest(Path(str(values[name]))) for name in ports if values[name] is not None]


def digest(path: Path) -> str:
    """Of the contents of a file, or of all files of a folder with their names."""
    found = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        found.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                found.update(block)
    return found.hexdigest()


def step_key(command: str, code: Path, earlier: list[str], files: list[str], processes: int) -> str:
    """Equal where nothing that the step depends on has changed."""
    return hashlib.sha256(json.dumps([command, code.name, earlier, files, processes]).encode()).hexdigest()


def finished(record: Path, key: str, outputs: dict[str, str], step: Step) -> bool:
    """Whether the step ran to its end with this key, and may be skipped for it."""
    if not record.is_file() or not step.component.get("is_deterministic", True):
        return False
    same = bool(json.loads(record.read_text())["key"] == key)
    return same and all(any(Path(folder).iterdir()) for folder in outputs.values() if Path(folder).is_dir())


def execute(name: str, command: str, code: Path, nodes: int, processes: int, log: Path, output: Path) -> None:
    """Start every process of a step and wait. Raises: StepError with the end of the log."""
    world = nodes * processes
    port = free_port()
    running: list[subprocess.Popen[bytes]] = []
    with log.open("wb") as written:
        try:
            for rank in range(world):
                env = environment(rank, processes, world, port, output)
                other = None if rank == 0 else log.with_name(f"log.rank{rank}.txt").open("wb")
                stdout = other or subprocess.PIPE
                running.append(
                    subprocess.Popen(
                        ["bash", "-c", command],
                        cwd=code,
                        env=env,
                        stdout=stdout,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
                if other:
                    other.close()
            pipe = running[0].stdout
            if pipe is not None:
                show(pipe, written)
            codes = wait(running)
        except BaseException:
            stop(running)
            raise
    failed = [(rank, code_) for rank, code_ in enumerate(codes) if code_]
    if failed:
        rank, code_ = failed[0]
        where = log if rank == 0 else log.with_name(f"log.rank{rank}.txt")
        raise StepError(
            Fault(
                f"{name} ended with exit code {code_}",
                where=str(where),
                fix="mend what the log says and run the same command again: finished steps are skipped",
            )
        )


def environment(rank: int, processes: int, world: int, port: int, output: Path) -> dict[str, str]:
    """The variables that Azure ML sets for one process of a PyTorch job."""
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank % processes,
        "NODE_RANK": rank // processes,
        "LOCAL_WORLD_SIZE": processes,
        "WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PYTHONUNBUFFERED": 1,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // world),
    }
    live = {"FINETUNE_LIVE": "1"} if sys.stdout.isatty() else {}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    tracking = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output}/mlflow.db"
    return {**os.environ, **{k: str(v) for k, v in own.items()}, **live, "PATH": path, "MLFLOW_TRACKING_URI": tracking}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def show(pipe: IO[bytes], log: IO[bytes]) -> None:
    """Pass the output on to the terminal and the log as it comes, progress bars and all."""
    while block := os.read(pipe.fileno(), 65536):
        sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
        log.write(block)
        log.flush()


def wait(running: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes of all; when one fails, the others are ended."""
    while any(process.poll() is None for process in running):
        if any(process.returncode for process in running):
            failed = [process.returncode or 0 for process in running]
            stop(running)
            return failed
        time.sleep(0.05)
    return [process.returncode for process in running]


def stop(running: list[subprocess.Popen[bytes]]) -> None:
    """End the process groups: interrupted first, killed after a grace period."""
    for kind in (signal.SIGINT, signal.SIGKILL):
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, kind)
        until = time.monotonic() + GRACE
        while any(process.poll() is None for process in running) and time.monotonic() < until:
            time.sleep(0.05)


def summarize(pipeline: Pipeline, done: list[Done], output: Path) -> None:
    """A time table, and where the outputs are."""
    width = max(len(item.step) for item in done)
    print("--- done")
    for item in done:
        print(f"{item.step:{width}}  {item.status:9}  {item.seconds:7.1f} s  {item.log}")
    for name in pipeline.outputs:
        print(f"{name:{width}}  {output / name}")


if __name__ == "__main__":
    run_main(main)
