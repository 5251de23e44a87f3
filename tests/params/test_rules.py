"""The finetune inputs against the seed specification, and what is refused or has no effect."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.core.errors import UnsupportedError
from finetune.params.components import TASKS
from finetune.params.finetune import QuestionAnsweringParams
from finetune.params.rules import refuse_unsupported, without_effect
from finetune.params.schema import params_of, to_text
from tests.conftest import ROOT

BOOL = ("true", "false")
SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")

# question_answering_finetune 0.0.17 and token_classification_finetune 0.0.2 alike: name, type, default, enum. All are
# optional but for the two folders.
SHARED: tuple[tuple[str, str, Any, tuple[str, ...]], ...] = (
    ("apply_lora", "string", "false", BOOL),
    ("merge_lora_weights", "string", "true", BOOL),
    ("lora_alpha", "integer", 128, ()),
    ("lora_r", "integer", 8, ()),
    ("lora_dropout", "number", 0.0, ()),
    ("num_train_epochs", "integer", 1, ()),
    ("max_steps", "integer", -1, ()),
    ("per_device_train_batch_size", "integer", 1, ()),
    ("per_device_eval_batch_size", "integer", 1, ()),
    ("auto_find_batch_size", "string", "false", BOOL),
    ("optim", "string", "adamw_hf", ("adamw_hf", "adamw_torch", "adafactor")),
    ("learning_rate", "number", 2e-05, ()),
    ("warmup_steps", "integer", 0, ()),
    ("weight_decay", "number", 0.0, ()),
    ("adam_beta1", "number", 0.9, ()),
    ("adam_beta2", "number", 0.999, ()),
    ("adam_epsilon", "number", 1e-08, ()),
    ("gradient_accumulation_steps", "integer", 1, ()),
    ("lr_scheduler_type", "string", "linear", SCHEDULERS),
    ("precision", "string", "32", ("32", "16")),
    ("seed", "integer", 42, ()),
    ("enable_full_determinism", "string", "false", BOOL),
    ("dataloader_num_workers", "integer", 0, ()),
    ("ignore_mismatched_sizes", "string", "true", BOOL),
    ("max_grad_norm", "number", 1.0, ()),
    ("evaluation_strategy", "string", "epoch", ("epoch", "steps")),
    ("evaluation_steps_interval", "number", 0.0, ()),
    ("eval_steps", "integer", 500, ()),
    ("logging_strategy", "string", "epoch", ("epoch", "steps")),
    ("logging_steps", "integer", 500, ()),
    ("resume_from_checkpoint", "string", "false", BOOL),
    ("save_total_limit", "integer", -1, ()),
    ("apply_early_stopping", "string", "false", BOOL),
    ("early_stopping_patience", "integer", 1, ()),
    ("early_stopping_threshold", "number", 0.0, ()),
    ("apply_deepspeed", "string", "false", BOOL),
    ("deepspeed", "uri_file", None, ()),
    ("apply_ort", "string", "false", BOOL),
    ("preprocess_output", "uri_folder", None, ()),
    ("model_selector_output", "uri_folder", None, ()),
)
OWN: dict[str, tuple[tuple[str, str, Any, tuple[str, ...]], ...]] = {
    "question_answering": (
        ("eval_accumulation_steps", "integer", 1, ()),
        ("metric_for_best_model", "string", "loss", ("loss", "f1", "exact")),
    ),
    "token_classification": (
        ("metric_for_best_model", "string", "loss", ("loss", "f1", "accuracy", "precision", "recall")),
    ),
}
# Further optional inputs, whose defaults leave every other one its meaning.
BEYOND = {
    "preset", "keep_global_batch_size", "lr_scheduler_cycles", "lr_scheduler_power", "gradient_checkpointing",
    "torch_compile", "attn_implementation", "throughput_warmup_steps", "save_steps", "lora_type", "finetune_in_4bit",
    "deepspeed_stage", "apply_fsdp",
}  # fmt: skip
OUTPUTS = {"pytorch_model_folder": "uri_folder", "mlflow_model_folder": "mlflow_model"}
FOLDERS = {"preprocess_output", "model_selector_output"}


def finetune_params(**changed: Any) -> QuestionAnsweringParams:
    folders = {name: Path(name) for name in (*FOLDERS, *OUTPUTS)}
    return QuestionAnsweringParams(**{**folders, **changed})


def component(task: str) -> dict[str, Any]:
    path = ROOT / "components" / task / "finetune.yaml"
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def test_every_shared_input_in_the_order_of_the_spec() -> None:
    names = [name for name, *_ in SHARED]
    assert len(set(names)) == len(names) == 40
    for task in OWN:
        assert [p.name for p in params_of(TASKS[task].finetune) if p.name in names] == names
        assert [name for name in component(task)["inputs"] if name in names] == names


def test_nothing_besides_the_spec() -> None:
    """eval_accumulation_steps is an input of question answering alone."""
    names = {name for name, *_ in SHARED} | BEYOND
    for task, own in OWN.items():
        assert set(component(task)["inputs"]) - names == {name for name, *_ in own}


@pytest.mark.parametrize(
    ("task", "name", "kind", "default", "enum"),
    [(task, *row) for task, own in OWN.items() for row in (*SHARED, *own)],
    ids=[f"{task}-{row[0]}" for task, own in OWN.items() for row in (*SHARED, *own)],
)
def test_input(task: str, name: str, kind: str, default: Any, enum: tuple[str, ...]) -> None:
    p = next(p for p in params_of(TASKS[task].finetune) if p.name == name)
    assert ("string" if p.kind == "boolean" else p.kind, p.required, p.output) == (kind, name in FOLDERS, False)
    assert p.default_text == (None if default is None else to_text(default))

    entry = component(task)["inputs"][name]
    assert (entry["type"], entry.get("optional", False)) == (kind, name not in FOLDERS)
    assert (entry.get("default"), type(entry.get("default"))) == (default, type(default))

    for allowed in (p.enum, entry.get("enum", ())):
        assert set(enum) <= set(allowed)
        assert bool(enum) == bool(allowed)


@pytest.mark.parametrize("task", TASKS)
def test_only_the_two_folders_are_required(task: str) -> None:
    assert {p.name for p in params_of(TASKS[task].finetune) if p.required and not p.output} == FOLDERS
    assert {name for name, entry in component(task)["inputs"].items() if not entry.get("optional")} == FOLDERS


@pytest.mark.parametrize("task", TASKS)
def test_the_two_outputs(task: str) -> None:
    assert {p.name: p.kind for p in params_of(TASKS[task].finetune) if p.output} == OUTPUTS
    assert {name: entry["type"] for name, entry in component(task)["outputs"].items()} == OUTPUTS


def test_refuses_ort_and_says_what_to_set() -> None:
    with pytest.raises(UnsupportedError, match="fix: --apply_ort false") as raised:
        refuse_unsupported(finetune_params(apply_ort=True))
    assert len(raised.value.faults) == 1 and raised.value.faults[0].why


def test_defaults_are_supported_and_all_have_effect() -> None:
    refuse_unsupported(finetune_params())
    assert without_effect(finetune_params()) == []


@pytest.mark.parametrize(
    ("changed", "enabled", "line"),
    [
        ({"lora_r": 16}, {"apply_lora": True}, "lora_r 16 has no effect with apply_lora false"),
        ({"lora_alpha": 16}, {"apply_lora": True}, "lora_alpha 16 has no effect with apply_lora false"),
        ({"lora_dropout": 0.1}, {"apply_lora": True}, "lora_dropout 0.1 has no effect with apply_lora false"),
        ({"lora_type": "dora"}, {"apply_lora": True}, "lora_type dora has no effect with apply_lora false"),
        (
            {"merge_lora_weights": False},
            {"apply_lora": True},
            "merge_lora_weights false has no effect with apply_lora false",
        ),
        (
            {"eval_steps": 10},
            {"evaluation_strategy": "steps"},
            "eval_steps 10 has no effect with evaluation_strategy epoch",
        ),
        (
            {"evaluation_steps_interval": 0.5},
            {"evaluation_strategy": "steps"},
            "evaluation_steps_interval 0.5 has no effect with evaluation_strategy epoch",
        ),
        (
            {"logging_steps": 10},
            {"logging_strategy": "steps"},
            "logging_steps 10 has no effect with logging_strategy epoch",
        ),
        (
            {"early_stopping_patience": 3},
            {"apply_early_stopping": True},
            "early_stopping_patience 3 has no effect with apply_early_stopping false",
        ),
        (
            {"early_stopping_threshold": 0.1},
            {"apply_early_stopping": True},
            "early_stopping_threshold 0.1 has no effect with apply_early_stopping false",
        ),
        (
            {"lr_scheduler_cycles": 2},
            {"lr_scheduler_type": "cosine_with_restarts"},
            "lr_scheduler_cycles 2 has no effect with lr_scheduler_type linear",
        ),
        (
            {"lr_scheduler_power": 2.0},
            {"lr_scheduler_type": "polynomial"},
            "lr_scheduler_power 2.0 has no effect with lr_scheduler_type linear",
        ),
        (
            {"keep_global_batch_size": True},
            {"auto_find_batch_size": True},
            "keep_global_batch_size true has no effect with auto_find_batch_size false",
        ),
        (
            {"deepspeed": Path("zero2.json")},
            {"apply_deepspeed": True},
            "deepspeed zero2.json has no effect with apply_deepspeed false",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_parameters_that_another_one_turns_off(changed: dict[str, Any], enabled: dict[str, Any], line: str) -> None:
    assert without_effect(finetune_params(**changed)) == [line]
    assert without_effect(finetune_params(**changed, **enabled)) == []


@pytest.mark.parametrize("name", ["adam_beta1", "adam_beta2", "adam_epsilon"])
def test_adam_settings_have_no_effect_with_adafactor(name: str) -> None:
    lines = [f"{name} 0.5 has no effect with optim adafactor"]
    assert without_effect(finetune_params(**{name: 0.5}, optim="adafactor")) == lines
    assert without_effect(finetune_params(**{name: 0.5}, optim="adamw_torch")) == []
    assert without_effect(finetune_params(**{name: 0.5}, optim="adamw_hf")) == []


def test_max_steps_overrides_epochs() -> None:
    lines = ["num_train_epochs 3 has no effect with max_steps 100"]
    assert without_effect(finetune_params(num_train_epochs=3, max_steps=100)) == lines
    assert without_effect(finetune_params(num_train_epochs=3, max_steps=-1)) == []
    assert without_effect(finetune_params(max_steps=100)) == []


def test_one_line_for_each_parameter_without_effect() -> None:
    changed = finetune_params(
        lora_r=16, eval_steps=10, adam_beta1=0.5, optim="adafactor", num_train_epochs=3, max_steps=9
    )
    assert [line.split()[0] for line in without_effect(changed)] == [
        "lora_r",
        "eval_steps",
        "adam_beta1",
        "num_train_epochs",
    ]
