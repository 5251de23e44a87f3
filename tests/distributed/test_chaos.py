"""Random faults. Whatever befalls a run, resumed to its end it gives the weights of one that nothing befell.

`make test-chaos` (`python -m tests.distributed.test_chaos`) runs all of them, in an hour or two, and writes
docs/faults.md. Each chain of faults befalls one run, and has its number as its seed.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from finetune.core.errors import PeerError, StoppedError, StorageError
from finetune.training import checkpoints
from finetune.training.checkpoints import COMPLETE, WRITING
from tests.conftest import ROOT, finetune_words
from tests.forking import Forks
from tests.launching import Launched, fill, is_running, launch

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.thorough]
PAGE = ROOT / "docs" / "faults.md"
RECORD = "befell.json"  # of a chain, in the folder of its test
STEPS = 90
SETTINGS = {
    "per_device_eval_batch_size": 16,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "evaluation_strategy": "steps",
    "eval_steps": 6,
    "save_steps": 4,
    "save_total_limit": 3,
    "logging_strategy": "steps",
    "logging_steps": 1,
}
AZURE, TORCHRUN = "Azure's variables", "torchrun"
HANG = {AZURE: 0.1, TORCHRUN: 0.5}  # minutes, where a process is stopped: torchrun's import the libraries in that time
# Of chains in turn. Processes of torchrun can't be forked: they spend most of their time on imports.
LAUNCHES = ("alone", AZURE, "alone", AZURE, TORCHRUN, AZURE, "alone", AZURE, "alone", AZURE)
TASKS = {"questions": "prepared", "tags": "prepared_tags", "translation": "prepared_pairs"}
FAULTS, CHAINS = 6, 50  # faults of each chain
OFTEN = 7  # chains that make test-all runs; the others are left to make test-chaos


@dataclass(frozen=True)
class Befell:
    """A fault of a chain, and what came of it."""

    chain: int
    launch: str
    task: str
    kind: str
    what: str
    resumed: str  # the step that the same command went on from, "none" where it began anew
    equal: bool = False  # the weights and evaluations of the chain in the end, bit for bit


@dataclass(frozen=True)
class Target:
    """A run that is trained, in which something is about to happen."""

    run: Launched
    disk: Path
    ranks: list[int]  # those that it happens to, some of `processes`
    processes: int
    chance: random.Random
    step: int  # that it has made

    @property
    def folder(self) -> Path:
        return self.disk / "pytorch"


def sigterm(target: Target) -> str:
    for rank in target.ranks:
        target.run.send(rank, signal.SIGTERM)
    assert set(target.run.codes()) <= {StoppedError.exit_code, 1}, target.run.said()  # 1 is torchrun's
    assert "which is saved" in target.run.said()
    return f"SIGTERM of {target.ranks} after step {target.step}"


def sigkill(target: Target) -> str:
    target.run.send(target.ranks[0], signal.SIGKILL)
    assert 0 not in target.run.codes(), target.run.said()
    return f"SIGKILL of {target.ranks[0]} after step {target.step}"


def sigkill_in_a_save(target: Target) -> str:
    run, folder = target.run, target.folder
    torn = run.until(lambda: [path for path in folder.glob("checkpoint-*") if (path / WRITING).exists()])
    run.send(0, signal.SIGKILL)
    assert 0 not in run.codes(), run.said()
    return f"SIGKILL in the middle of saving or removing {torn[0].name}"


def sigstop(target: Target) -> str:
    """The others end by themselves. Then the stopped process goes on, or its launcher kills it."""
    run, stopped = target.run, target.ranks[0]
    pids = [run.pid(rank) for rank in range(target.processes)]
    run.send(stopped, signal.SIGSTOP)
    others = [pid for rank, pid in enumerate(pids) if rank != stopped]
    run.until(lambda: not any(is_running(pid) for pid in others), 180)
    then = target.chance.choice([signal.SIGCONT, signal.SIGKILL])
    os.kill(pids[stopped], then)
    codes = run.codes()
    by_itself = [code for rank, code in enumerate(codes) if rank != stopped] if codes[1:] else []
    assert 0 not in codes and by_itself in ([PeerError.exit_code], []), run.said()  # torchrun's is 1
    assert f"process {stopped} of {target.processes}, on " in run.said(1 - stopped if by_itself else 0)
    return f"SIGSTOP of {stopped} after step {target.step}, {then.name} after the others had left"


def full_disk(target: Target) -> str:
    left = target.chance.choice([0, 100_000, 300_000, 600_000])
    ballast = fill(target.disk, left)
    assert set(target.run.codes()) <= {StorageError.exit_code, 1}, target.run.said()
    ballast.unlink()
    return f"{left:,} bytes left on the disk after step {target.step}"


def truncated_file(target: Target) -> str:
    return _damaged(target, "cut in half", lambda path: os.truncate(path, path.stat().st_size // 2))


def flipped_bit(target: Target) -> str:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[target.chance.randrange(len(content))] ^= 1 << target.chance.randrange(8)
        path.write_bytes(content)

    return _damaged(target, "with a bit flipped", flip)


def _damaged(target: Target, how: str, damage: Callable[[Path], None]) -> str:
    """After a SIGKILL: a file of one of the two newest checkpoints that are complete."""

    def complete() -> list[Path]:
        return [path for path in checkpoints.checkpoints(target.folder) if (path / COMPLETE).exists()]

    target.run.until(complete)
    killed = sigkill(target)
    chosen = target.chance.choice(complete()[:2])
    harmed = target.chance.choice(sorted(p for p in chosen.rglob("*") if p.is_file() and p.stat().st_size))
    damage(harmed)
    return f"{killed}, then {chosen.name}/{harmed.relative_to(chosen)} {how}"


STRIKES: dict[str, Callable[[Target], str]] = {
    "SIGTERM": sigterm,
    "SIGKILL": sigkill,
    "SIGKILL in a save": sigkill_in_a_save,
    "SIGSTOP": sigstop,
    "full disk": full_disk,
    "truncated file": truncated_file,
    "flipped bit": flipped_bit,
}


def strike(kind: str, run: Launched, disk: Path, processes: int, chance: random.Random) -> str:
    """Wait for a moment of the run, and let the fault happen to it. -> what it was."""
    moment = run.until(lambda: step_of(run), 300) + chance.randint(0, 5)
    ranks = sorted(chance.sample(range(processes), chance.randint(1, processes)))
    run.until(lambda: step_of(run) >= moment)
    return STRIKES[kind](Target(run, disk, ranks, processes, chance, moment))


def step_of(run: Launched) -> int:
    found = [line.split("/")[0].split()[1] for line in run.said().splitlines() if line.startswith("step ")]
    return int(found[-1]) if found else 0


def resumed(run: Launched) -> str:
    found = re.search(r"^going on from checkpoint-(\d+)$", run.said(), re.MULTILINE)
    return found[1] if found else "none"


def kinds_of(chance: random.Random, processes: int, disk: Path) -> list[str]:
    """A chain: no kind twice, where there are as many that can happen here."""
    possible = {kind for kind in STRIKES if kind != "SIGSTOP" or processes > 1}  # alone, nobody is left to notice it
    possible -= set() if disk.is_mount() else {"full disk"}
    kinds = sorted(possible)
    chance.shuffle(kinds)
    return [*kinds, *(chance.choice(kinds) for _ in range(FAULTS - len(kinds)))][:FAULTS]


def words(prepared: Path, output: Path, how: str, **parameters: object) -> list[str]:
    batch = 4 if how == "alone" else 2
    return finetune_words(prepared, output, **SETTINGS, per_device_train_batch_size=batch, **parameters)


def launched(folder: Path, given: Sequence[str], how: str, forks: Forks) -> Launched:
    return launch(folder, given, "azure" if how == AZURE else how, forks=forks)


def history(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every evaluation."""
    state = json.loads((folder / "pytorch" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [(entry["step"], entry["eval_loss"]) for entry in state["log_history"] if "eval_loss" in entry]


def run_to_its_end(folder: Path, given: Sequence[str], how: str, forks: Forks) -> Launched:
    run = launched(folder, given, how, forks)
    assert set(run.codes()) == {0}, run.said()
    return run


@pytest.fixture(scope="module")
def unbroken() -> dict[str, Path]:
    """Processes and task -> the folder of a run that nothing befell."""
    done: dict[str, Path] = {}
    return done


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one where this user may mount it, else a folder, which never fills up."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.mark.parametrize(
    "chain", [*range(OFTEN), *(pytest.param(i, marks=pytest.mark.chaos) for i in range(OFTEN, CHAINS))]
)
def test_faults(
    request: pytest.FixtureRequest, forks: Forks, tmp_path: Path, unbroken: dict[str, Path], disk: Path, chain: int
) -> None:
    chance = random.Random(chain)
    how, task = LAUNCHES[chain % len(LAUNCHES)], [*TASKS][chain % len(TASKS)]
    prepared: Path = request.getfixturevalue(TASKS[task])
    processes = 1 if how == "alone" else 2
    same = f"{processes} {task}"
    if same not in unbroken:
        other = "alone" if how == "alone" else AZURE  # torchrun's processes are to end with the weights of these
        run_to_its_end(tmp_path, words(prepared, tmp_path / "unbroken", other), other, forks)
        unbroken[same] = tmp_path / "unbroken"

    befell: list[Befell] = []
    goes_on = chance.choice(["true", "false"])  # the same command goes on by itself, too
    try:
        for kind in kinds_of(chance, processes, disk):
            own = {"hang_timeout": HANG[how]} if kind == "SIGSTOP" else {}
            run = launched(tmp_path, words(prepared, disk, how, resume_from_checkpoint=goes_on, **own), how, forks)
            what = strike(kind, run, disk, processes, chance)
            befell[-1:] = [replace(last, resumed=resumed(run)) for last in befell[-1:]]
            befell.append(Befell(chain, how, task, kind, what, ""))
            print(befell[-1])
        run = run_to_its_end(tmp_path, words(prepared, disk, how, resume_from_checkpoint=goes_on), how, forks)
        befell[-1] = replace(befell[-1], resumed=resumed(run))

        weights = [folder / "pytorch" / "model.safetensors" for folder in (disk, unbroken[same])]
        assert weights[0].read_bytes() == weights[1].read_bytes(), befell
        assert history(disk) == history(unbroken[same]), befell
        left = checkpoints.checkpoints(disk / "pytorch")
        assert 0 < len(left) <= SETTINGS["save_total_limit"]
        assert not [why for path in left if (why := checkpoints.why_incomplete(path))], befell
        befell = [replace(one, equal=True) for one in befell]
    finally:
        (tmp_path / RECORD).write_text(json.dumps([asdict(one) for one in befell]))


INTRODUCTION = """# {count} random faults

Each chain of {faults} faults befalls one run of {steps} steps, which evaluates every 6 and saves every 4. After each
fault the same command goes on, in about half of the chains with `--resume_from_checkpoint true`. "Equal": its weights,
and the loss of every evaluation, are in the end those of a run that nothing befell, bit for bit, and no checkpoint is
left that is not whole. {equal} of {count} are.

Written by `python -m tests.distributed.test_chaos` (`make test-chaos`), of the chains that it has run: {chains} of
{all_chains}. A chain has its number as its seed; in which millisecond of a run a fault comes is another one each time.

"""


def page(befell: Sequence[Befell]) -> str:
    """docs/faults.md."""
    launches = list(dict.fromkeys(LAUNCHES))
    counts = Counter((one.kind, one.launch) for one in befell)
    sums = [f"| fault | {' | '.join(launches)} |", f"|{' --- |' * (1 + len(launches))}"]
    sums += [f"| {kind} | {' | '.join(str(counts[kind, how]) for how in launches)} |" for kind in STRIKES]
    lines = ["| chain | launch | task | what happened | went on from step | equal |", f"|{' --- |' * 6}"]
    lines += [
        f"| {one.chain} | {one.launch} | {one.task} | {one.what} | {one.resumed} | {'yes' if one.equal else 'NO'} |"
        for one in befell
    ]
    head = INTRODUCTION.format(
        count=len(befell),
        faults=FAULTS,
        steps=STEPS,
        equal=sum(one.equal for one in befell),
        chains=len({one.chain for one in befell}),
        all_chains=CHAINS,
    )
    return head + "\n".join([*sums, "", *lines]) + "\n"


def recorded(folder: Path) -> list[Befell]:
    """What befell the chains that were run in a base folder of pytest."""
    files = {path.resolve() for path in folder.rglob(RECORD)}  # pytest links to folders, too
    chains = [[Befell(**one) for one in json.loads(file.read_text())] for file in files]
    return [one for chain in sorted(filter(None, chains), key=lambda chain: chain[0].chain) for one in chain]


if __name__ == "__main__":
    base = ROOT / "out" / "faults"
    shutil.rmtree(base, ignore_errors=True)
    failed = pytest.main([__file__, "--basetemp", str(base), *sys.argv[1:]])
    PAGE.write_text(page(recorded(base)), encoding="utf-8")
    sys.exit(failed)
