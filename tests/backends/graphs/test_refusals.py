"""What finetune export refuses before it converts anything; none of its packages is needed for that."""

import re
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from finetune.backends import runtimes
from finetune.core.errors import UnsupportedError
from finetune.models.facts import facts_of
from finetune.models.loading import empty_model
from finetune.models.stored import exportable
from finetune.params.components import TASKS
from finetune.tasks import load_task
from tests.backends.graphs.test_conversion import CONFIGS


def config(family: str, **values: Any) -> Any:
    return CONFIG_MAPPING[family](**values)


def test_every_family_is_compared_in_a_test() -> None:
    """Of those that write, tests/backends/graphs/test_generation.py takes the list itself."""
    assert set(exportable.READERS) == CONFIGS.keys()


@pytest.mark.parametrize(
    ("family", "writes", "instead"),
    [
        *((family, False, "bert") for family in ("albert", "deberta", "gpt2", "modernbert", "t5")),
        *((family, True, "bart") for family in ("bert", "pegasus", "prophetnet")),
    ],
)
def test_another_family(family: str, writes: bool, instead: str) -> None:
    assert re.match(
        f"conversions are compared with PyTorch for {instead}, .* alone$", exportable.why_not(config(family), writes)
    )


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "linear", "yarn", "llama3"])
def test_positions_that_depend_on_the_length(kind: str) -> None:
    """A graph has those of its example: the logits of a longer text would be others, and no comparison would see it."""
    scaled = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    scaled |= {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    why = exportable.why_not(
        config("llama", rope_parameters=scaled, hidden_size=64, num_attention_heads=2), writes=True
    )
    assert (f"rope_type {kind}" in why) == (kind in ("dynamic", "longrope"))


@pytest.mark.parametrize("task", TASKS)
def test_a_model_is_refused_before_it_is_trained_as_after(task: str) -> None:
    """By the facts of an empty one: whether it writes is what its class says."""
    for family in ("bert", "t5", "gpt2", "albert"):
        if type(config(family)) in load_task(task).model.families:
            model = empty_model(config(family), load_task(task))
            assert facts_of(model).not_exported == exportable.why_not(model.config, load_task(task).writes)


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
