"""The recommended values against the table they come from."""

from typing import Any, get_args

import pytest

from finetune.params.components import TASKS
from finetune.params.finetune import FinetuneParams, PresetName
from finetune.params.presets import load, with_preset
from finetune.params.provenance import Derived
from finetune.params.schema import params_of, to_text
from tests.params.test_rules import finetune_params

NAMES = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size")
# The table of Optimum for Intel Gaudi's question answering examples: preset, devices, values.
TABLE: tuple[tuple[str, int, tuple[float, int, int, int]], ...] = (
    ("bert-base", 1, (3e-5, 2, 24, 8)),
    ("bert-base", 8, (3e-5, 2, 24, 8)),
    ("bert-large", 1, (3e-5, 2, 24, 8)),
    ("roberta-base", 1, (3e-5, 2, 12, 8)),
    ("roberta-large", 1, (3e-5, 2, 12, 8)),
    ("albert-large", 1, (5e-5, 2, 32, 4)),
    ("albert-large", 8, (6e-5, 2, 32, 4)),
    ("albert-xxl", 1, (5e-6, 2, 16, 2)),
    ("albert-xxl", 8, (5e-5, 2, 16, 2)),
    ("distilbert", 1, (5e-5, 3, 8, 8)),
    ("llama-2-13b", 8, (3e-5, 2, 8, 8)),
)


@pytest.mark.parametrize(("name", "devices", "values"), TABLE)
def test_values(name: str, devices: int, values: tuple[float, int, int, int]) -> None:
    params, taken = with_preset(finetune_params(preset=name), devices)
    assert tuple(vars(params)[key] for key in NAMES) == values and params.precision == "bf16"
    assert taken == [Derived(key, vars(params)[key], f"preset {name}") for key in (*NAMES, "precision")]


def test_every_preset_is_in_the_table() -> None:
    assert {name for name, *_ in TABLE} | {"none"} == set(get_args(PresetName)) == set(load(1)) | {"none"}


@pytest.mark.parametrize("processes", [1, 8])
def test_every_value_of_the_file_is_one_that_could_be_typed(processes: int) -> None:
    known = {p.name: p for p in params_of(FinetuneParams)}
    for values in load(processes).values():
        assert list(values) == [*NAMES, "precision"]
        assert all(known[name].convert(to_text(value)) == value for name, value in values.items())


def test_what_is_away_from_its_default_wins() -> None:
    given: dict[str, Any] = {"learning_rate": 1e-4, "precision": "16"}
    params, taken = with_preset(finetune_params(preset="bert-large", **given), 1)
    assert (params.learning_rate, params.precision, params.num_train_epochs) == (1e-4, "16", 2)
    assert {item.name for item in taken} == {*NAMES[1:]}


def test_none_changes_nothing() -> None:
    assert with_preset(finetune_params(), 8) == (finetune_params(), [])


def test_every_task_has_them() -> None:
    for classes in TASKS.values():
        assert "preset" in classes.finetune.__dataclass_fields__
