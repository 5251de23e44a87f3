"""Each family of the allow-list: loss and gradients of the whole model, in 64 bits, with the same draws."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from finetune.models.adapt import cpu_kernels, pruning
from finetune.models.kernels import attention
from finetune.models.kernels.dropout import draw, scale
from finetune.models.kernels.families import FAMILIES as KNOWN
from finetune.tasks import load_task
from tests.families import FAMILIES
from tests.models.test_blocks import PARAMS

TASKS = [load_task(name) for name in ("question_answering", "token_classification")]
OTHERS = sorted(FAMILIES.keys() - KNOWN - {"deberta-v3", "gpt2", "llama", "mistral", "qwen2", "t5"})
IDS = torch.arange(5, 29).reshape(2, 12)


def build(family: str, task: Any, **given: Any) -> Any:
    """A tiny model in 64 bits, in training, that drops as its config says."""
    sizes = {"distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}}.get(
        family, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    )
    # Of ALBERT's and DistilBERT's dropout some is 0 unless asked for.
    drops = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout_prob": 0.1}
    drops = {"dropout": 0.2, "attention_dropout": 0.3, "qa_dropout": 0.1} if family == "distilbert" else drops
    kind = type(transformers.AutoConfig.for_model(family))
    config = kind(vocab_size=40, max_position_embeddings=40, initializer_range=0.3, **sizes, **drops, **given)
    torch.manual_seed(3)
    return task.model.auto_model(config).from_config(config).double().train()


def loss_and_gradients(model: Any) -> dict[str, Tensor]:
    """Of a batch whose second window is padded."""
    mask = torch.ones_like(IDS)
    mask[1, 9:] = 0
    torch.manual_seed(4)
    found = model(input_ids=IDS, attention_mask=mask)
    logits = found.logits if "logits" in found else torch.stack([found.start_logits, found.end_logits], -1)
    loss = (logits[mask.bool()].square().sum() + logits[mask.bool()].sin().sum()) / mask.sum()
    loss.backward()
    gradients = {n: p.grad if p.grad is not None else torch.zeros(()) for n, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients}


@contextmanager
def drawn_alike(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let plain PyTorch drop by our draws: its eager attention and its layers ask in the same order."""

    def dropout(inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p:
            return inputs
        return inputs * draw((inputs.numel(),), p, inputs.dtype).view_as(inputs) * scale(p)

    with monkeypatch.context() as patched:
        patched.setattr(functional, "dropout", dropout)
        yield


@pytest.mark.parametrize("family", sorted(KNOWN))
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_loss_and_gradients(family: str, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of eager attention with the same draws; the kernels were called, and drop something."""
    plain = build(family, task)
    plain.set_attn_implementation("eager")
    with drawn_alike(monkeypatch):
        wanted = loss_and_gradients(plain)
    model, _ = cpu_kernels.apply(build(family, task), PARAMS)
    calls = []
    computed = attention._Attention.forward

    def counted(*given: Any) -> Any:
        calls.append(given[-2] is not None)  # whether there are draws
        return computed(*given)

    monkeypatch.setattr(attention._Attention, "forward", staticmethod(counted))
    found = loss_and_gradients(model)
    assert calls == 2 * [True]
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12, msg=name)
    model.eval()
    assert not torch.isclose(loss_and_gradients(model)["loss"], wanted["loss"])


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_left_alone(family: str) -> None:
    task = TASKS[0] if type(transformers.AutoConfig.for_model(family)) in TASKS[0].model.families else TASKS[1]
    config = transformers.AutoConfig.for_model(family)
    with torch.device("meta"):
        model = task.model.auto_model(config).from_config(config)
    same, lines = cpu_kernels.apply(model, PARAMS)
    assert same is model and lines == [] and model.config._attn_implementation != attention.NAME


def test_a_decoder_is_left_alone() -> None:
    model, _ = cpu_kernels.apply(build("bert", TASKS[0], is_decoder=True), PARAMS)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_with_gates_of_pruning(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One head is closed; then it is cut out, so that a layer has fewer heads than its config says."""
    gradients = []
    for kernels in (False, True):
        model, _ = pruning.apply(build(family, TASKS[0]), PARAMS)
        pruning.gated_layers(model)[0].heads.gates[1] = 0
        model.double().train()
        if kernels:
            model, _ = cpu_kernels.apply(model, PARAMS)
            gradients.append(loss_and_gradients(model))
            model = cpu_kernels.restore(model)
        else:
            model.set_attn_implementation("eager")
            with drawn_alike(monkeypatch):
                gradients.append(loss_and_gradients(model))
        model = pruning.restore(model).double().train()
        if kernels:
            model, _ = cpu_kernels.apply(model, PARAMS)
        with drawn_alike(monkeypatch):
            gradients.append(loss_and_gradients(model))
    gated, cut, with_kernels, cut_with_kernels = gradients
    for wanted, found in ((gated, with_kernels), (cut, cut_with_kernels)):
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12, msg=name)
