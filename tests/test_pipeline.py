"""Pipelines of tiny components, run on this machine by real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.core.errors import ParameterError, StepError
from finetune.pipeline import main

# Writes down what it sees; how it behaves is told by variables, which are no part of a step's inputs.
CODE = """
import json, os, sys, time
from pathlib import Path

words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name, out, rank = words["--name"], Path(words["--out"]), os.environ["RANK"]
print(f"{name} rank {rank} says süß", flush=True)
files = sorted(str(path) for path in Path().rglob("*") if path.is_file())
seen = {"words": words, "env": dict(os.environ), "files": files, "before": sorted(os.listdir(out))}
(out / f"seen.{rank}.json").write_text(json.dumps(seen))
with open(os.environ["TRACE"], "a") as trace:
    trace.write(name + "\\n")
if os.environ.get("FAIL") == f"{name} {rank}":
    sys.exit(3)
if os.environ.get("SLEEP") == f"{name} {rank}":
    time.sleep(12)
"""
TWO_STEPS: dict[str, Any] = {
    "type": "pipeline",
    "inputs": {
        "data": {"type": "uri_file", "optional": True},
        "text": {"type": "string", "default": "plain"},
        "size": {"type": "integer", "default": 4, "min": 1},
        "nodes": {"type": "integer", "default": 1},
        "processes": {"type": "integer", "default": 1},
    },
    "outputs": {"result": {"type": "uri_folder"}},
    "jobs": {
        "first": {
            "component": "file:./first.yaml",
            "inputs": {"data": "${{parent.inputs.data}}", "text": "${{parent.inputs.text}}"},
        },
        "second": {
            "component": "file:./second.yaml",
            "inputs": {"size": "${{parent.inputs.size}}", "folder": "${{parent.jobs.first.outputs.out}}"},
            "outputs": {"out": "${{parent.outputs.result}}"},
            "resources": {"instance_count": "${{parent.inputs.nodes}}"},
            "distribution": {"type": "pytorch", "process_count_per_instance": "${{parent.inputs.processes}}"},
        },
    },
}


def write_component(root: Path, name: str, inputs: dict[str, Any], **more: Any) -> None:
    """NAME.yaml and the folder NAME with its code."""
    groups = " ".join(f"$[[--{key} ${{{{inputs.{key}}}}}]]" for key in inputs)
    spec = {
        "type": "command",
        "inputs": inputs,
        "outputs": {"out": {"type": "uri_folder"}},
        "code": f"./{name}",
        "command": f"python step.py --name {name} {groups} --out ${{{{outputs.out}}}}",
        **more,
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    (root / name).mkdir(exist_ok=True)
    (root / name / "step.py").write_text(CODE, encoding="utf-8")


FIRST_INPUTS = {"data": {"type": "uri_file", "optional": True}, "text": {"type": "string"}}
SECOND_INPUTS = {"size": {"type": "integer"}, "folder": {"type": "uri_folder"}}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, with a space in its name, that holds a pipeline of two steps; it is the working folder of the test."""
    folder = tmp_path / "my project"
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(TWO_STEPS, sort_keys=False), encoding="utf-8")
    write_component(folder, "first", FIRST_INPUTS)
    write_component(folder, "second", SECOND_INPUTS)
    monkeypatch.setenv("TRACE", str(folder / "trace.txt"))
    monkeypatch.chdir(folder)
    return folder


def ran(root: Path, *words: str) -> list[str]:
    """Run the pipeline into `out dir`; the names of the steps that ran."""
    (root / "trace.txt").unlink(missing_ok=True)
    main(["pipeline.yaml", "--output", "out dir", *words])
    return traced(root)


def traced(root: Path) -> list[str]:
    trace = root / "trace.txt"
    return trace.read_text().split() if trace.is_file() else []


def seen(root: Path, step: str, rank: int = 0) -> Any:
    """What a process of a step wrote down."""
    folder = {"first": "steps/first/out", "second": "result"}[step]
    return json.loads((root / "out dir" / folder / f"seen.{rank}.json").read_text())


def start(*words: str) -> subprocess.Popen[str]:
    heedful = ["env", "--default-signal=INT"]  # also where the tests are a background job
    command = [*heedful, sys.executable, "-m", "finetune", "pipeline", "pipeline.yaml", "--output", "out dir", *words]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )


def until(true: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it became true in time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def alive(pid: str) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


def faults_of(*argv: str) -> list[str]:
    with pytest.raises(ParameterError) as caught:
        main(["pipeline.yaml", *argv])
    return [fault.what for fault in caught.value.faults]


# The command line


def test_wrong_values_are_reported_at_once(root: Path) -> None:
    words = ["txet=a", "size=many", "nodes=1.5", "data=nowhere.csv"]
    assert faults_of("--output", "o", "--set", *words) == [
        "the pipeline has no input 'txet'; did you mean text?",
        "--set size=many must be an integer",
        "--set nodes=1.5 must be an integer",
        "--set data=nowhere.csv is not there",
    ]
    assert not (root / "o").exists()


def test_a_value_out_of_range(root: Path) -> None:
    assert faults_of("--output", "o", "--set", "size=0") == ["--set size=0 must be at least 1"]


def test_a_required_input_without_value(root: Path) -> None:
    write_pipeline(root, "inputs", "data", {"type": "uri_file"})
    assert faults_of("--output", "o") == ["input data is missing"]


def write_pipeline(root: Path, part: str, name: str, entry: dict[str, Any]) -> None:
    """Write the pipeline with one entry of it replaced."""
    spec = {**TWO_STEPS, part: {**TWO_STEPS[part], name: entry}}
    (root / "pipeline.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")


@pytest.mark.usefixtures("root")
def test_wrong_options_are_reported_at_once() -> None:
    assert faults_of("--forse", "--set", "size") == [
        "unknown option --forse; did you mean --force?",
        "unexpected word 'size'",
        "--output is missing",
    ]


def test_a_missing_pipeline_file(root: Path) -> None:
    with pytest.raises(ParameterError, match=r"nowhere\.yaml is missing"):
        main(["nowhere.yaml", "--output", "o"])
    with pytest.raises(ParameterError, match="no pipeline file"):
        main(["--output", "o"])


@pytest.mark.usefixtures("root")
def test_the_command_ends_with_the_exit_code_of_the_error() -> None:
    process = start("--set", "sise=3")
    shown, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert shown == "parameter error: the pipeline has no input 'sise'; did you mean size?\n"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "--set NAME=VALUE" in capsys.readouterr().out


# What a step sees


def test_values_reach_the_steps(root: Path) -> None:
    (root / "some rows.csv").write_text("a,b\n")
    text = 'it\'s $(pwd) & "süß" = ${HOME}'
    assert ran(root, "--set", f"text={text}", "size=7", "--set", "data=some rows.csv") == ["first", "second"]
    first = seen(root, "first")["words"]
    assert first["--text"] == text
    assert first["--data"] == str(root / "some rows.csv")
    assert seen(root, "second")["words"] == {
        "--name": "second",
        "--size": "7",
        "--folder": str(root / "out dir" / "steps" / "first" / "out"),
        "--out": str(root / "out dir" / "result"),
    }


def test_defaults_and_absent_inputs(root: Path) -> None:
    ran(root)
    assert seen(root, "first")["words"].keys() == {"--name", "--text", "--out"}
    assert seen(root, "first")["words"]["--text"] == "plain"
    assert seen(root, "second")["words"]["--size"] == "4"


def test_the_summary_names_outputs_and_logs(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ran(root)
    shown = capfd.readouterr().out
    assert "--- 1/2 first\nfirst rank 0 says süß\n--- 2/2 second\nsecond rank 0 says süß\n--- done\n" in shown
    for path in ("steps/first/log.txt", "steps/second/log.txt", "result"):
        assert str(root / "out dir" / path) in shown


@pytest.mark.parametrize(("nodes", "processes"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_the_variables_of_a_distributed_job(root: Path, nodes: int, processes: int) -> None:
    ran(root, "--set", f"nodes={nodes}", f"processes={processes}")
    found = [seen(root, "second", rank)["env"] for rank in range(nodes * processes)]
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    assert [[int(env[name]) for name in names] for env in found] == [
        [rank, rank % processes, rank // processes, nodes * processes, processes] for rank in range(nodes * processes)
    ]
    assert {env["MASTER_ADDR"] for env in found} == {"127.0.0.1"}
    ports = {int(env["MASTER_PORT"]) for env in found}
    assert len(ports) == 1
    assert 1024 <= ports.pop() < 65536
    assert seen(root, "first")["env"]["WORLD_SIZE"] == "1"


def test_the_component_s_own_distribution(root: Path) -> None:
    write_component(root, "first", FIRST_INPUTS, distribution={"process_count_per_instance": 2})
    assert ran(root) == ["first", "first", "second"]
    assert seen(root, "first", 1)["env"]["WORLD_SIZE"] == "2"


def test_every_process_has_its_log(root: Path) -> None:
    ran(root, "--set", "processes=2")
    logs = root / "out dir" / "steps" / "second"
    assert (logs / "log.txt").read_text(encoding="utf-8") == "second rank 0 says süß\n"
    assert (logs / "log.rank1.txt").read_text(encoding="utf-8") == "second rank 1 says süß\n"


@pytest.mark.usefixtures("root")
def test_output_is_shown_and_logged_while_the_step_runs(root: Path) -> None:
    (root / "first" / "step.py").write_text(
        "import time, pathlib\nprint('one', flush=True)\n"
        f"go, end = pathlib.Path({str(root / 'go')!r}), time.time() + 10\n"
        "while not go.exists():\n    assert time.time() < end\n    time.sleep(0.05)\nprint('two')\n"
    )
    process = start()
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["--- 1/2 first\n", "one\n"]
    assert until((lambda: (root / "out dir/steps/first/log.txt").read_text() == "one\n"), 5)
    (root / "go").touch()
    shown, _ = process.communicate(timeout=30)
    assert process.returncode == 0, shown
    assert shown.startswith("two\n--- 2/2 second\n")


# The snapshot


def test_a_step_runs_in_the_snapshot_of_its_code(root: Path) -> None:
    write_component(root, "first", FIRST_INPUTS, additional_includes=["./configs", "./one.txt"])
    for name in ("first/secret.key", "first/package/a.py", "configs/deep/b.json", "one.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("text")
    (root / "first" / ".amlignore").write_text("*.key\n")
    ran(root)
    files = [name for name in seen(root, "first")["files"] if name != ".amlignore"]
    assert files == ["configs/deep/b.json", "one.txt", "package/a.py", "step.py"]


def test_an_import_that_is_missing_in_the_snapshot_fails(root: Path) -> None:
    (root / "first" / "helper.py").write_text("")
    (root / "first" / "step.py").write_text(f"import helper\n{CODE}")
    assert ran(root) == ["first", "second"]
    (root / "first" / ".amlignore").write_text("helper.py\n")
    with pytest.raises(StepError):
        ran(root)
    assert "No module named 'helper'" in (root / "out dir/steps/first/log.txt").read_text()


# Which steps run again


def test_unchanged_steps_are_skipped(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ran(root) == ["first", "second"]
    capfd.readouterr()
    assert ran(root) == []
    assert capfd.readouterr().out.count("unchanged, skipped") == 2
    assert ran(root, "--force") == ["first", "second"]


@pytest.mark.parametrize(
    ("value", "steps"), [("text=new", ["first", "second"]), ("size=5", ["second"]), ("processes=2", ["second"] * 2)]
)
def test_a_changed_value_runs_its_step_and_those_after_it(root: Path, value: str, steps: list[str]) -> None:
    ran(root)
    assert ran(root, "--set", value) == steps
    assert ran(root, "--set", value) == []


def test_changed_contents_of_a_file_run_the_step(root: Path) -> None:
    data = root / "rows.csv"
    data.write_text("one")
    assert ran(root, "--set", "data=rows.csv") == ["first", "second"]
    data.touch()
    assert ran(root, "--set", "data=rows.csv") == []
    data.write_text("two")
    assert ran(root, "--set", "data=rows.csv") == ["first", "second"]


def test_changed_contents_of_a_folder_run_the_step(root: Path) -> None:
    write_pipeline(root, "inputs", "data", {"type": "uri_folder"})
    write_component(root, "first", {**FIRST_INPUTS, "data": {"type": "uri_folder"}})
    (root / "rows" / "deep").mkdir(parents=True)
    (root / "rows" / "deep" / "a.csv").write_text("one")
    assert ran(root, "--set", "data=rows") == ["first", "second"]
    assert ran(root, "--set", "data=rows") == []
    (root / "rows" / "deep" / "a.csv").rename(root / "rows" / "deep" / "b.csv")
    assert ran(root, "--set", "data=rows") == ["first", "second"]


@pytest.mark.parametrize(("name", "steps"), [("first", ["first", "second"]), ("second", ["second"])])
def test_changed_code_runs_its_step_and_those_after_it(root: Path, name: str, steps: list[str]) -> None:
    ran(root)
    (root / name / "step.py").write_text(f"{CODE}\n# changed\n", encoding="utf-8")
    assert ran(root) == steps


def test_a_step_that_is_not_deterministic_always_runs(root: Path) -> None:
    write_component(root, "second", SECOND_INPUTS, is_deterministic=False)
    ran(root)
    assert ran(root) == ["second"]


def test_steps_after_one_that_ran_again_run_again(root: Path) -> None:
    write_component(root, "first", FIRST_INPUTS, is_deterministic=False)
    ran(root)
    assert ran(root) == ["first", "second"]


def test_a_step_whose_output_was_emptied_runs_again(root: Path) -> None:
    ran(root)
    (root / "out dir" / "result" / "seen.0.json").unlink()
    assert ran(root) == ["second"]


def test_a_step_whose_output_was_deleted_runs_again(root: Path) -> None:
    ran(root)
    shutil.rmtree(root / "out dir" / "result")
    assert ran(root) == ["second"]


# Failures


def test_a_failed_step_ends_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "first 0")
    with pytest.raises(StepError) as caught:
        ran(root)
    [fault] = caught.value.faults
    assert fault.what == "first ended with exit code 3"
    assert fault.where == str(root / "out dir" / "steps" / "first" / "log.txt")
    assert traced(root) == ["first"]
    assert not (root / "out dir" / "result").exists()


def test_the_command_ends_with_code_7(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "second 0")
    process = start()
    shown, _ = process.communicate(timeout=30)
    assert process.returncode == 7
    assert "pipeline error: second ended with exit code 3" in shown
    assert str(root / "out dir" / "steps" / "second" / "log.txt") in shown


def test_an_unfinished_step_keeps_its_folder_and_runs_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "second 0")
    with pytest.raises(StepError):
        ran(root)
    (root / "out dir" / "result" / "checkpoint").touch()
    monkeypatch.delenv("FAIL")
    assert ran(root) == ["second"]
    assert seen(root, "second")["before"] == ["checkpoint", "seen.0.json"]
    assert ran(root) == []


def test_a_step_that_failed_after_it_had_finished_runs_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(root)
    monkeypatch.setenv("FAIL", "second 0")
    with pytest.raises(StepError):
        ran(root, "--force")
    monkeypatch.delenv("FAIL")
    assert ran(root) == ["second"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1], ids=["rank 0", "rank 1"])
def test_when_one_rank_fails_the_other_is_ended(root: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", f"second {rank}")
    monkeypatch.setenv("SLEEP", f"second {1 - rank}")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job of a shell
    started = time.monotonic()
    try:
        with pytest.raises(StepError, match="second ended with exit code 3") as caught:
            ran(root, "--set", "processes=2")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 8
    assert caught.value.faults[0].where.endswith("log.txt" if rank == 0 else "log.rank1.txt")


INTERRUPTED = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; {ignore}; time.sleep(30)"])
pids = pathlib.Path("{pids}")
pids.with_suffix(".new").write_text(f"{{os.getpid()}} {{child.pid}}")
time.sleep(0.5)
pids.with_suffix(".new").rename(pids)
time.sleep(30)
"""
IGNORE = "signal.signal(signal.SIGINT, signal.SIG_IGN)"


@pytest.mark.slow
@pytest.mark.parametrize(
    "ignore",
    ["pass", IGNORE],
    ids=["child that listens", "child that does not"],
)
def test_an_interrupt_ends_all_processes(root: Path, ignore: str) -> None:
    pids = root / "pids"
    (root / "first" / "step.py").write_text(INTERRUPTED.format(ignore=ignore, pids=pids))
    runner = start()
    assert until(pids.exists, 20)
    processes = pids.read_text().split()
    try:
        assert [alive(pid) for pid in processes] == [True, True]
        runner.send_signal(signal.SIGINT)
        runner.communicate(timeout=20)
        assert runner.returncode == 130
        assert until(lambda: not any(map(alive, processes)), 5)
        assert not (root / "out dir" / "steps" / "first" / "step.json").exists()
    finally:
        for pid in filter(alive, processes):
            os.kill(int(pid), signal.SIGKILL)


LISTENS = """
import pathlib, signal, sys, time

def save(*_):
    time.sleep(1)
    pathlib.Path("{saved}").touch()
    sys.exit(9)

signal.signal(signal.SIGTERM, save)
pathlib.Path("{saved}").with_suffix(".ready").touch()
time.sleep(30)
"""


@pytest.mark.slow
def test_a_sigterm_is_passed_on(root: Path) -> None:
    """A step that can save what it has done is let do so."""
    saved = root / "saved"
    (root / "first" / "step.py").write_text(LISTENS.format(saved=saved))
    runner = start()
    assert until(saved.with_suffix(".ready").exists, 20)
    runner.send_signal(signal.SIGTERM)
    runner.communicate(timeout=20)
    assert runner.returncode == 130 and saved.exists()
