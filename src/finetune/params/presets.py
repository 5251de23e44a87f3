"""Recommended values, as ready presets.

They are those of Optimum for Intel Gaudi's question answering examples, found for SQuAD in mixed precision.
"""

from dataclasses import fields, replace
from typing import Any

from finetune.params.finetune import FinetuneParams
from finetune.params.provenance import Derived


def _values(learning_rate: float, epochs: int, train_batch: int, eval_batch: int) -> dict[str, Any]:
    return {
        "learning_rate": learning_rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": train_batch,
        "per_device_eval_batch_size": eval_batch,
        "precision": "bf16",
    }


PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "bert-base": _values(3e-5, 2, 24, 8),
    "bert-large": _values(3e-5, 2, 24, 8),
    "roberta-base": _values(3e-5, 2, 12, 8),
    "roberta-large": _values(3e-5, 2, 12, 8),
    "albert-large": _values(5e-5, 2, 32, 4),
    "albert-xxl": _values(5e-6, 2, 16, 2),
    "distilbert": _values(5e-5, 3, 8, 8),
    "llama-2-13b": _values(3e-5, 2, 8, 8),
}
ON_SEVERAL_DEVICES: dict[str, dict[str, Any]] = {
    "albert-large": {"learning_rate": 6e-5},
    "albert-xxl": {"learning_rate": 5e-5},
}


def with_preset(params: FinetuneParams, processes: int) -> tuple[FinetuneParams, list[Derived]]:
    """The parameters with the values of their preset wherever they are at their default, and which those are.

    A value given away from its default wins. One given at its default can't be told from one that isn't given: Azure
    ML puts every default into the command.
    """
    defaults = {f.name: f.default for f in fields(params)}
    wanted = PRESETS[params.preset] | (ON_SEVERAL_DEVICES.get(params.preset, {}) if processes > 1 else {})
    taken = {name: value for name, value in wanted.items() if vars(params)[name] == defaults[name]}
    reason = f"preset {params.preset}"
    return replace(params, **taken), [Derived(name, value, reason) for name, value in taken.items()]
