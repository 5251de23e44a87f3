"""Run a pipeline component YAML on this machine, step by step, as Azure ML would.

    finetune pipeline components/question_answering/pipeline.yaml --set train_file_path=train.jsonl --output out

What runs is each component's own `command:`, in a snapshot of its code. A step whose inputs and code are unchanged is
skipped. Everything lies under --output: the pipeline's outputs, steps/JOB/ with the other outputs and the logs.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.azure import processes, snapshot
from finetune.azure.pipeline_yaml import Pipeline, load_pipeline, needs
from finetune.azure.plan import USAGE, Prepared, Words, prepare, read_words
from finetune.check import commands_of, settle_steps
from finetune.core.outputs import Output, claimed
from finetune.core.process import run_main
from finetune.core.reading import Unreadable, json_object
from finetune.core.types import Json

HOME = ("code/", "log.txt", "log.rank#.txt", "step.json", "step.part")  # what is written into steps/JOB/


@dataclass(frozen=True)
class Done:
    """A step that is done, and what became of it."""

    step: str
    status: str  # ran or unchanged
    seconds: float
    log: Path


def main(argv: list[str]) -> None:
    if not argv or "--help" in argv or "-h" in argv:
        print(USAGE, end="")
        return
    processes.end_with_this_process()
    words = read_words(argv)
    run(words)


def run(words: Words) -> list[Done]:
    """Check the run, then its steps in order. Raises: StepError when one fails; the steps before it stay finished."""
    pipeline, output = load_pipeline(words.file), words.output
    prepared, faults = prepare(pipeline, words.values, output)
    settle_steps(commands_of(prepared), faults)
    with claimed(written_here(prepared, output)):
        if words.force or not all(finished(record_file(output, item), item) for item in prepared):
            check(words)
        done = run_steps(words, prepared)
    summarize(pipeline, done, output)
    return done


def written_here(prepared: Sequence[Prepared], output: Path) -> list[Output]:
    """Return the folders that the runner writes into itself; what is written into their outputs, steps look after."""
    database = () if "MLFLOW_TRACKING_URI" in os.environ else ("mlflow.db", "mlflow.db-journal")
    homes = [record_file(output, item).parent for item in prepared]
    return [Output("--output", output, database), *(Output("--output", home, HOME) for home in homes)]


def run_steps(words: Words, prepared: Sequence[Prepared]) -> list[Done]:
    """Run the steps that aren't finished. Raises: StepError when one fails."""
    output = words.output
    done: list[Done] = []
    for number, item in enumerate(prepared, start=1):
        name = item.step.name
        print(f"--- {number}/{len(prepared)} {name}", flush=True)
        record = record_file(output, item)
        home, log = record.parent, record.with_name("log.txt")
        fresh = {earlier.step for earlier in done if earlier.status == "ran"}
        if not words.force and not needs(item.step) & fresh and finished(record, item):
            print("unchanged, skipped", flush=True)
            done.append(Done(name, "unchanged", 0.0, log))
            continue
        record.unlink(missing_ok=True)
        home.mkdir(parents=True, exist_ok=True)
        for port, path in item.outputs.items():
            (path.parent if item.step.outputs[port].kind == "uri_file" else path).mkdir(parents=True, exist_ok=True)
        snapshot.copy(item.step.snapshot, home / "code")
        started = time.perf_counter()
        processes.execute(name, item.command, item.processes, item.world, home, output)
        seconds = time.perf_counter() - started
        save_record(record, {"key": item.key, "seconds": seconds, "command": item.command})
        done.append(Done(name, "ran", seconds, log))
    return done


def check(words: Words) -> None:
    """Run `finetune check` in a process of its own, whose memory is free when the steps run; its error ends the run."""
    given = [f"{name}={value}" for name, value in words.values.items()]
    done = subprocess.run([sys.executable, "-m", "finetune", "check", str(words.file), "--set", *given], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def record_file(output: Path, item: Prepared) -> Path:
    """Return the file that is written when the step has run to its end."""
    return output / "steps" / item.step.name / "step.json"


def finished(record: Path, item: Prepared) -> bool:
    """Return whether the step ran to its end with this key, and may be skipped for it."""
    if not record.is_file() or not item.step.component.get("is_deterministic", True):
        return False
    try:
        key = json_object(record).get("key")
    except Unreadable:
        return False
    there = all(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in item.outputs.values())
    return there and key == item.key


def save_record(record: Path, values: Json) -> None:
    """Write the record in one piece: one that exists is complete."""
    part = record.with_suffix(".part")
    part.write_text(json.dumps(values, indent=2) + "\n")
    part.replace(record)


def summarize(pipeline: Pipeline, done: list[Done], output: Path) -> None:
    """Print the seconds of the steps, and where the outputs are."""
    width = max(len(item.step) for item in done)
    print("--- done")
    for item in done:
        print(f"{item.step:{width}}  {item.status:9}  {item.seconds:7.1f} s  {item.log}")
    for name in pipeline.outputs:
        print(f"{name:{width}}  {output / name}")


if __name__ == "__main__":
    run_main(main)
