"""What finetune export refuses before it converts anything; none of its packages is needed for that."""

from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from finetune import export
from finetune.backends import runtimes
from finetune.backends.graphs import families
from finetune.core.errors import UnsupportedError
from finetune.params.export import ExportParams
from finetune.tasks import load_task
from tests.backends.graphs.test_conversion import CONFIGS


def config(family: str, **values: Any) -> Any:
    return CONFIG_MAPPING[family](**values)


def test_every_family_is_compared_in_a_test() -> None:
    """Of those that write, tests/backends/graphs/test_generation.py takes the list itself."""
    assert set(families.READERS) == CONFIGS.keys()


@pytest.mark.parametrize(
    ("family", "writes"),
    [*((family, False) for family in families.READERS), *((family, True) for family in families.WRITERS)],
)
def test_what_is_converted(family: str, writes: bool) -> None:
    families.refuse_others(config(family), writes)


@pytest.mark.parametrize(
    ("family", "writes", "instead"),
    [
        *((family, False, "bert") for family in ("albert", "deberta", "gpt2", "modernbert", "t5")),
        *((family, True, "bart") for family in ("bert", "pegasus", "prophetnet")),
    ],
)
def test_another_family(family: str, writes: bool, instead: str) -> None:
    with pytest.raises(
        UnsupportedError, match=f"finetune export of a {family}\n.*why: .*\n.*fix: finetune one of {instead},"
    ):
        families.refuse_others(config(family), writes)


def test_positions_that_depend_on_the_length() -> None:
    """A graph has those of its example: the logits of a longer text would be others, and no comparison would see it."""
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(UnsupportedError, match=r"finetune export of this llama\n.*rope_type dynamic"):
        families.refuse_others(config("llama", rope_parameters=scaled), writes=True)
    families.refuse_others(config("llama", rope_parameters={**scaled, "rope_type": "linear"}), writes=True)


@pytest.mark.parametrize("given", [{"onnx": True}, {"quantization": "qat"}])
@pytest.mark.parametrize("task", ["translation", "generative_question_answering"])
def test_what_is_not_done_with_a_model_that_writes(task: str, given: dict[str, Any], tmp_path: Path) -> None:
    params = ExportParams(preprocess_output=tmp_path, openvino_model_folder=tmp_path, **given)
    (name,) = given
    with pytest.raises(UnsupportedError, match=f"--{name} .* for a model of {task}\n.*why: .*\n.*fix: --{name} "):
        export.refuse_for_writers(params, load_task(task))
    export.refuse_for_writers(params, load_task("question_answering"))


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
