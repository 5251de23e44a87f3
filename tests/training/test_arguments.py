"""Parameters -> TrainingArguments: what weight decay leaves alone in every family, and what is derived."""

from pathlib import Path

import pytest
import torch
import transformers

from finetune.tasks import load_task
from finetune.training import arguments
from finetune.training.schedule import schedule
from finetune.training.trainer import FinetuneTrainer
from tests.families import FAMILIES
from tests.params.test_rules import finetune_params


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["question_answering", "token_classification"])
def test_biases_and_norms_do_not_decay(family: str, task: str) -> None:
    config_class, _, _, values = FAMILIES[family]
    config = getattr(transformers, config_class)(vocab_size=100, pad_token_id=1, **values)
    with torch.device("meta"):
        model = load_task(task).model.auto_model(config).from_config(config)
    plain = {
        f"{where}.{name}"
        for where, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if "norm" in type(module).__name__.lower() or "bias" in f"{where}.{name}"
    }
    decayed = set(FinetuneTrainer.get_decay_parameter_names(None, model))
    names = {name for name, _ in model.named_parameters()}  # of weights that have several, the first
    assert len(plain) > 5 and decayed & names == names - plain


def test_several_gpus_and_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    params = finetune_params()
    found = arguments.derived(params, params, schedule(params, windows=10, processes=1), "auto")
    assert "GPUs: 1 (one process of 4 visible; torchrun --nproc-per-node 4 uses all)" in map(str, found)


def test_what_compiling_does_to_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        params = finetune_params(torch_compile=True)
        found = [str(line) for line in arguments.derived(params, params, schedule(params, 10, 1), "auto")]
        assert any(line.startswith("precision of matrix products: TF32") for line in found) is gpu


def test_batches_move_while_a_step_is_computed(tmp_path: Path) -> None:
    params = finetune_params(pytorch_model_folder=tmp_path)
    assert arguments.training_arguments(params, schedule(params, 10, 1)).accelerator_config.non_blocking
