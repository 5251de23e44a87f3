"""Break parameters, one at a time, and see the proof of each fail.

    python -m tools.mutations                      every optional parameter of the finetune component
    python -m tools.mutations seed max_grad_norm   these
    python -m tools.mutations --component datapreprocess --task token_classification

A parameter is broken by putting its default wherever the code reads it: it is dropped on the way to what it is for.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetune.params.components import TASKS
from finetune.params.schema import Param, params_of
from tests.conftest import ROOT
from tests.proofs.table import TABLE, proofs

PARSED = "    return cls(**values)\n"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("parameters", nargs="*")
    words.add_argument("--component", choices=TABLE, default="finetune")
    words.add_argument("--task", choices=TASKS, default="question_answering")
    given = words.parse_args()
    known = [p for p in params_of(vars(TASKS[given.task])[given.component]) if not p.required]
    chosen = [p for p in known if not given.parameters or p.name in given.parameters]
    if tested(chosen[0], given.component, given.task, lambda package: ["nothing"]):
        sys.exit("the proof fails though nothing is broken")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda p: broken(p, given.component, given.task), chosen))
    tried = [caught for caught in found if caught is not None]
    print(f"{sum(tried)} of {len(tried)} broken parameters are caught by their proofs")
    skipped = [p.name for p, caught in zip(chosen, found, strict=True) if caught is None]
    if skipped:
        print(f"what the proofs of these need is not installed: {', '.join(skipped)}")
    sys.exit(not all(tried))


def broken(p: Param, component: str, task: str) -> bool | None:
    """Whether a proof of the parameter fails in a copy of the code that ignores it; None if all are skipped."""
    return tested(p, component, task, lambda package: drop(p, package))


def tested(p: Param, component: str, task: str, change: Callable[[Path], list[str]]) -> bool | None:
    """Whether a proof of the parameter fails in a copy of the package after the change; None if all are skipped."""
    tests = dict.fromkeys(proof.test(component, task) for proof in proofs(component, task) if proof.parameter == p.name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "main"
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("configs", "tests", "tools", "examples", "pyproject.toml"):
            (copy / name).symlink_to(ROOT / name)
        places = change(copy / "src" / "finetune")
        env = {**os.environ, "PYTHONPATH": f"{copy / 'src'}:{copy}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-rpfs", "--basetemp", f"{folder}/tmp", *tests]
        began = time.perf_counter()
        ran = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
    failed, skipped = (counted(word, ran.stdout) for word in ("FAILED", "SKIPPED"))
    if ran.returncode not in (0, 1):
        sys.exit(ran.stdout + ran.stderr)
    seconds = time.perf_counter() - began
    found = f"{failed} of its proofs fail" + (f", {skipped} are skipped" if skipped else "")
    print(f"{p.name:28} {found}, broken in {', '.join(places)} ({seconds:.0f} s)", flush=True)
    return None if skipped and not failed and not counted("PASSED", ran.stdout) else failed > 0


def counted(word: str, said: str) -> int:
    """How many lines of pytest's summary begin with the word: a passed or failed test, or what was skipped alike."""
    return len(re.findall(rf"^{word} ", said, flags=re.MULTILINE))


def drop(p: Param, package: Path) -> list[str]:
    """Put the default wherever the parameter is read; leave files, and what tables read, out after parsing."""
    reads = re.compile(rf"\b(?:\w+\.)*params\.{p.name}\b")
    places = []
    for path in () if p.is_port else sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if reads.search(text):
            path.write_text(reads.sub(f"({p.default!r})", text), encoding="utf-8")
            places.append(str(path.relative_to(package)))
    if not places:
        path = package / "params" / "schema.py"
        text = path.read_text(encoding="utf-8")
        assert text.count(PARSED) == 1
        kept = f"    return cls(**{{name: value for name, value in values.items() if name != {p.name!r}}})\n"
        path.write_text(text.replace(PARSED, kept), encoding="utf-8")
        places.append("params/schema.py")
    return places


if __name__ == "__main__":
    main()
