"""Parameters -> TrainingArguments: what weight decay leaves alone in every family, and what is derived."""

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
