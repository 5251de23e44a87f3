"""What finetune export refuses before it converts anything; none of its packages is needed for that."""

import pytest

from finetune.backends import families, runtimes
from finetune.core.errors import UnsupportedError
from finetune.params.components import TASKS
from tests.backends.test_conversion import CONFIGS


def test_every_family_is_compared_in_a_test() -> None:
    assert set(families.FAMILIES) == CONFIGS.keys()


@pytest.mark.parametrize("task", families.TASKS)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_what_is_converted(task: str, family: str) -> None:
    families.refuse_others(task, family)


@pytest.mark.parametrize("family", ["albert", "deberta", "deberta-v2", "gpt2", "modernbert", "t5"])
def test_another_family(family: str) -> None:
    with pytest.raises(
        UnsupportedError, match=f"finetune export of a {family}\n.*why: .*\n.*fix: finetune one of bert,"
    ):
        families.refuse_others("question_answering", family)


@pytest.mark.parametrize("task", sorted(TASKS.keys() - set(families.TASKS)))
def test_a_task_whose_model_writes(task: str) -> None:
    with pytest.raises(UnsupportedError, match=f"a model of {task}\n.*writes token after token") as raised:
        families.refuse_others(task, "t5")
    assert f"--task {task} --pytorch_model_folder" in str(raised.value)


def test_packages_that_are_lacking() -> None:
    """With what to type: the extra, or what needs none of it."""
    runtimes.require(("numpy",), "--onnx true", "--onnx false")
    with pytest.raises(UnsupportedError) as raised:
        runtimes.require(("numpy", "no_such_package"), "--onnx true", "--onnx false")
    lines = str(raised.value).splitlines()
    assert lines[1:] == [
        "  why: the package no_such_package is not installed",
        '  fix: pip install ".[compression]", or --onnx false',
    ]
