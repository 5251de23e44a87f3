"""Every parameter does what it says: each row of the table through the real command line. See table.py."""

import pytest
import torch
from _pytest.mark import ParameterSet

from finetune.params.components import TASKS
from finetune.params.schema import params_of
from tests.conftest import ROOT
from tests.proofs.bench import Bench
from tests.proofs.table import GQ, QA, TABLE, TC, TR, Proof, proofs

pytestmark = pytest.mark.slow
ROWS = [(component, task, proof) for component in TABLE for task in TASKS for proof in proofs(component, task)]
COST = (QA, TC, TR, GQ)  # what writes takes three times as long
RUN_HERE = [row for row in ROWS if not row[2].elsewhere]


def cheapest(component: str, task: str, proof: Proof) -> ParameterSet:
    """The task whose runs take least runs a row by default; the thorough tier runs it in all."""
    dear = proof.thorough or task != min(proof.tasks, key=COST.index)
    marks = [pytest.mark.thorough] if dear else []
    return pytest.param(component, task, proof, id=proof.name(component, task), marks=marks)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("proofs"))


@pytest.mark.parametrize(("component", "task", "proof"), [cheapest(*row) for row in RUN_HERE])
def test_proof(bench: Bench, component: str, task: str, proof: Proof) -> None:
    found = bench.run(component, task, {**proof.base, **proof.given})
    if proof.refused and not (proof.only_without_gpu and torch.cuda.is_available()):
        code, text = proof.refused
        assert (found.exit_code, text in found.errors, found.steps) == (code, True, []), found.errors
        return
    assert found.exit_code == 0, found.errors
    assert proof.effect is not None
    proof.effect(proof.parameter, bench.base(component, task, dict(proof.base)), found)


@pytest.mark.parametrize("component", TABLE)
@pytest.mark.parametrize("task", TASKS)
def test_every_parameter_has_a_row(component: str, task: str) -> None:
    known = {p.name for p in params_of(vars(TASKS[task])[component])}
    assert {proof.parameter for proof in proofs(component, task)} == known


def test_tests_elsewhere_exist() -> None:
    for _, _, proof in ROWS:
        if proof.elsewhere:
            file, _, name = proof.elsewhere.partition("::")
            assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), proof.elsewhere
