"""Every launch with every engine, precision and task: a run to its proved end. Writes the table of docs/distributed.md.

python -m tests.distributed.test_matrix
"""

import os
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.conftest import ROOT, finetune_words
from tests.launching import launch

LAUNCHES = {
    "alone": "`python -m finetune.run`",
    "torchrun": "`torchrun --nproc-per-node 2 -m finetune.run`",
    "azure": "Azure ML, `finetune pipeline`: a variable for each rank",
    "mpirun": "`mpirun -np 2 python -m finetune.run`",
}
ENGINES = {"DDP": {}, "ZeRO-2": {"deepspeed_stage": 2}, "ZeRO-3": {"deepspeed_stage": 3}}
PRECISIONS = ("32", "bf16")
TASKS = ("question_answering", "token_classification", "translation")
WAYS = list(product(LAUNCHES, ENGINES, PRECISIONS))
# The tasks in turn: what they add to a step has nothing to do with who started it.
CELLS = [(*way, TASKS[(i + i // 6) % 3]) for i, way in enumerate(WAYS)]
PAGE = ROOT / "docs" / "distributed.md"
BEGIN, END = "<!-- cells -->\n", "<!-- end of cells -->\n"
STEPS = {"max_steps": 4, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 16, "learning_rate": 1e-3}


def table() -> str:
    """Launch x engine x precision x task."""
    columns = list(product(ENGINES, PRECISIONS))
    lines = ["| launch | task | " + " | ".join(f"{e}, {p if p == 'bf16' else '32 bits'}" for e, p in columns) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(columns))
    for how, task in product(LAUNCHES, TASKS):
        found = ["works" if (how, *column, task) in CELLS else "·" for column in columns]
        lines.append(f"| {LAUNCHES[how]} | {task.replace('_', ' ')} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == table(), "run `python -m tests.distributed.test_matrix`"


def test_the_tests_that_the_page_names_exist() -> None:
    """`tests/FILE.py::test_name`."""
    import re

    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.thorough
@pytest.mark.parametrize(("how", "engine", "precision", "task"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_cell(
    prepared: Path,
    prepared_tags: Path,
    prepared_pairs: Path,
    tmp_path: Path,
    how: str,
    engine: str,
    precision: str,
    task: str,
) -> None:
    folder = dict(zip(TASKS, (prepared, prepared_tags, prepared_pairs), strict=True))[task]
    given = {"precision": precision, **ENGINES[engine]}
    if engine != "DDP":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make test-distributed")
        given["apply_deepspeed"] = "true"
    run = launch(tmp_path, finetune_words(folder, tmp_path, **STEPS, **given), how)
    assert set(run.codes()) == {0}, run.said()
    assert f"{1 if how == 'alone' else 2} x cpu, precision {precision}" in run.said()
    assert ("put together from" in run.said()) == (engine != "DDP")
    assert "both loaded afresh and equal to the trained model on" in run.said()


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    if os.environ.get("FINETUNE_ONLY_PAGE") or not pytest.main([__file__, "-p", "no:cacheprovider", "-k", "cell"]):
        PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")
    sys.exit()
