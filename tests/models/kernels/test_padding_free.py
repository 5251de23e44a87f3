"""Batches without padding: the same loss and gradients as padded ones, for each family, in 64 bits."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from finetune.data.batches import INDICES, collate_with_indices
from finetune.models.adapt import adaptations
from finetune.models.adapt import padding_free as adaptation
from finetune.models.kernels import padding_free
from finetune.models.kernels.families import FAMILIES as KNOWN
from finetune.tasks import answering
from tests.models.kernels.conftest import by_formula
from tests.models.kernels.test_families import OTHERS, TASKS, build
from tests.models.test_blocks import PARAMS as PRUNED

PARAMS = replace(PRUNED, apply_pruning=False, padding_free="always", cpu_kernels=False)
LENGTHS = (12, 5, 9)
PAD = 1  # RoBERTa's, whose positions are counted by it


def batch_of(task: Any) -> dict[str, Tensor]:
    """Three windows of different lengths, with labels, padded."""
    draws = torch.Generator().manual_seed(7)
    windows: list[dict[str, Any]] = []
    for length in LENGTHS:
        ids = torch.randint(5, 40, (length,), generator=draws).tolist()
        window: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * length}
        if task.name == "question_answering":
            window |= {"start_positions": 2, "end_positions": length - 1}
        else:
            window |= {"labels": [-100, *torch.randint(0, 2, (length - 2,), generator=draws).tolist(), -100]}
        windows.append(window)
    return collate_with_indices(windows, {"input_ids": PAD, "labels": -100})


def without_dropout(family: str, task: Any) -> Any:
    model = build(family, task)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout_prob", "attention_dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    return model


def loss_and_gradients(outputs: Any, batch: dict[str, Tensor], model: Any, task: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss = task.objective.loss(outputs, batch).sum() / task.objective.items(batch).sum()
    loss.backward()
    return {
        "loss": loss.detach(),
        **{name: torch.zeros(()) if p.grad is None else p.grad for name, p in model.named_parameters()},
    }


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys() and wanted["loss"] > 0
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def compared(model: Any, task: Any) -> None:
    """The loss is computed in 32 bits, so that gradients of models in 64 agree to these."""
    batch = batch_of(task)
    wanted = loss_and_gradients(answering.forward(model, batch, task.model.inputs), batch, model, task)
    found = padding_free.forward(model, batch, task.model.inputs, padding_free.first_position(model))
    assert_same(loss_and_gradients(found, batch, model, task), wanted)


@pytest.mark.parametrize("family", sorted(KNOWN))
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize(
    "training", [True, pytest.param(False, marks=pytest.mark.thorough)], ids=["training", "evaluation"]
)
def test_loss_and_gradients_are_those_of_padded_windows(family: str, task: Any, training: bool) -> None:
    model, lines = adaptation.apply(without_dropout(family, task), PARAMS)
    assert not lines and model.config._attn_implementation == padding_free.NAME
    compared(model.train(training), task)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize(
    "given",
    [{"apply_lora": True, "lora_dropout": 0.0}, {"apply_pruning": True}, {"cpu_kernels": True}],
    ids=str,
)
def test_with_other_adaptations(family: str, given: dict[str, Any]) -> None:
    adapted = adaptations.adapt(without_dropout(family, TASKS[0]), replace(PARAMS, **given))
    compared(adapted.model.double().train(), TASKS[0])
    assert adapted.restore(adapted.model).config._attn_implementation == "sdpa"


def test_layers_are_computed_again() -> None:
    model, _ = adaptation.apply(without_dropout("bert", TASKS[0]), PARAMS)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=adaptations.RECOMPUTE)
    compared(model.train(), TASKS[0])


def test_no_layer_sees_padding() -> None:
    """All that a linear layer is given are the tokens, and dropout is in attention too."""
    model, _ = adaptation.apply(build("bert", TASKS[0]), PARAMS)
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, given: seen.add(given[0].shape[:-1].numel()))
    batch = batch_of(TASKS[0])
    one, other = (padding_free.forward(model.train(), batch, TASKS[0].model.inputs, 0) for _ in range(2))
    assert seen == {sum(LENGTHS)}
    assert one.start_logits.shape == (len(LENGTHS), max(LENGTHS))
    assert not torch.equal(one.start_logits, other.start_logits)
    assert not one.start_logits[batch["attention_mask"] == 0].any()


def test_a_padded_batch_in_between() -> None:
    """Evaluation has no indices: the model looks at its mask, as stock attention does."""
    batch = batch_of(TASKS[0])
    model = build("roberta", TASKS[0]).eval()
    wanted = answering.forward(model, batch, TASKS[0].model.inputs).start_logits
    model, _ = adaptation.apply(model, PARAMS)
    assert torch.allclose(answering.forward(model, batch, TASKS[0].model.inputs).start_logits, wanted)


def test_indices_of_windows_that_preprocess_has_padded() -> None:
    windows = [{"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0]}, {"input_ids": [7], "attention_mask": [1]}]
    assert collate_with_indices(windows, {})[INDICES].tolist() == [0, 1, 4]


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_padded(family: str) -> None:
    config = AutoConfig.for_model(family)
    task = next(t for t in TASKS if type(config) in t.model.families)
    with torch.device("meta"):
        model = task.model.auto_model(config).from_config(config)
    before = model.config._attn_implementation
    same, lines = adaptation.apply(model, PARAMS)
    assert same.config._attn_implementation == before
    assert lines == [f"padding_free: not for this model ({model.config.model_type}); its batches are padded"]


@pytest.mark.parametrize(
    ("changed", "on_gpu", "on_cpu"),
    [
        ({"padding_free": "auto", "precision": "bf16"}, True, False),
        ({"padding_free": "auto", "precision": "16"}, True, False),
        ({"padding_free": "auto"}, False, False),
        ({"padding_free": "always"}, True, True),
        ({"padding_free": "never"}, False, False),
        ({"padding_free": "auto", "precision": "bf16", "attn_implementation": "sdpa"}, False, False),
        ({"padding_free": "auto", "precision": "bf16", "torch_compile": True}, True, False),
        ({"padding_free": "auto", "precision": "bf16", "torch_compile": True, "apply_fsdp": True}, False, False),
        ({"padding_free": "auto", "precision": "bf16", "torch_compile": True, "apply_lora": True}, False, False),
        ({"padding_free": "always", "torch_compile": True}, False, False),
        ({"padding_free": "auto", "precision": "bf16", "apply_ort": True}, False, False),
    ],
    ids=str,
)
def test_wanted(changed: dict[str, Any], on_gpu: bool, on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for has_gpu, wanted in ((True, on_gpu), (False, on_cpu)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert adaptation.wanted(replace(PARAMS, **changed)) is wanted


class OnGpu:
    """What is asked of a tensor before FlashAttention is."""

    def __init__(self, dtype: torch.dtype, size: int, is_cuda: bool = True) -> None:
        self.dtype, self.shape, self.is_cuda = dtype, (1, 2, 9, size), is_cuda


@pytest.mark.parametrize(
    ("tensor", "capability", "flash"),
    [
        (OnGpu(torch.bfloat16, 64), (8, 0), True),
        (OnGpu(torch.float16, 32), (9, 0), True),
        (OnGpu(torch.float16, 64), (7, 5), False),  # a T4
        (OnGpu(torch.float32, 64), (9, 0), False),
        (OnGpu(torch.bfloat16, 20), (9, 0), False),
        (OnGpu(torch.bfloat16, 512), (9, 0), False),
        (OnGpu(torch.bfloat16, 64, is_cuda=False), (9, 0), False),
    ],
)
def test_when_flash_attention_computes(
    tensor: Any, capability: tuple[int, int], flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = padding_free.why_no_flash.__wrapped__
    where = "cuda" if capability < (8, 0) else "cpu"  # where it is tried, by its formula
    monkeypatch.setattr(padding_free, "why_no_flash", lambda dtype, size: tried(dtype, size, where))
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", by_formula)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert padding_free.has_flash(tensor) is flash


def test_flash_attention_has_these_arguments() -> None:
    """PyTorch's operator takes them, and knows how to go back, by its kernel for tensors without numbers."""
    tensors = [torch.randn(26, 4, 16, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3)]
    begins = torch.zeros(4, dtype=torch.int32, device="meta")
    output = padding_free._flash(*tensors, begins, 12, 0.1, 0.25)
    assert (output.shape, output.dtype) == (torch.Size([26, 4, 16]), torch.bfloat16)
    output.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.shape == tensor.shape for tensor in tensors)


def failing(*_: Any, **__: Any) -> Any:
    raise TypeError("unexpected argument\nin the next version")


@pytest.mark.parametrize(
    ("operator", "why"),
    [
        (by_formula, ""),
        (lambda *given, scale: by_formula(*given, scale=1.0), "its numbers differ from those of single windows"),
        (
            lambda *given, scale: (by_formula(*given, scale=scale)[0].detach().requires_grad_(),),
            "The differentiated Tensor",
        ),
        (failing, "unexpected argument"),
    ],
    ids=["right", "wrong", "without gradients", "another signature"],
)
def test_flash_attention_is_tried_first(operator: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", operator)
    found = padding_free.why_no_flash.__wrapped__(torch.bfloat16, 16, "cpu")
    assert found == why or (why and found.startswith(why))


@pytest.mark.parametrize(
    ("given", "without_padding", "said"),
    [
        ({"padding_free": "auto", "precision": "bf16"}, False, "(no torch.bfloat16 of 16); batches are padded"),
        ({"padding_free": "always", "precision": "16"}, True, "(no torch.float16 of 16); attention is padded"),
        ({"padding_free": "always"}, True, "(it computes in 16 bits); attention is padded"),
    ],
    ids=str,
)
def test_without_flash_attention(
    given: dict[str, str], without_padding: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(padding_free, "why_no_flash", lambda dtype, size: f"no {dtype} of {size}")
    model, lines = adaptation.apply(build("bert", TASKS[0]), replace(PARAMS, **given))
    assert (model.config._attn_implementation == padding_free.NAME) is without_padding
    assert lines == [f"padding_free: FlashAttention can't be used {said}"]


def test_a_model_that_gives_hidden_states_too() -> None:
    model, _ = adaptation.apply(build("bert", TASKS[0], output_hidden_states=True), PARAMS)
    batch = batch_of(TASKS[0])
    outputs = padding_free.forward(model.eval(), batch, TASKS[0].model.inputs, 0)
    assert set(outputs) == {"start_logits", "end_logits"}


@pytest.mark.parametrize("family", sorted(KNOWN))
def test_flash_attention_is_given_windows(family: str, flash_by_formula: list[float]) -> None:
    model, _ = adaptation.apply(without_dropout(family, TASKS[1]), PARAMS)
    compared(model.train(), TASKS[1])
    assert flash_by_formula == 2 * [0.0]


def test_flash_attention_is_told_the_dropout(flash_by_formula: list[float]) -> None:
    model, _ = adaptation.apply(build("bert", TASKS[0]), PARAMS)
    for training in (True, False):
        padding_free.forward(model.train(training), batch_of(TASKS[0]), TASKS[0].model.inputs, 0)
    assert flash_by_formula == [0.3, 0.3, 0.0, 0.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3), (torch.float32, 1e-4)], ids=str
)
def test_on_a_gpu(dtype: torch.dtype, near: float) -> None:
    """Loss and gradients are those of padded windows in 64 bits on the CPU; in 16 bits by FlashAttention."""
    model, batch = without_dropout("bert", TASKS[0]), batch_of(TASKS[0])
    wanted = loss_and_gradients(answering.forward(model, batch, TASKS[0].model.inputs), batch, model, TASKS[0])
    model, _ = adaptation.apply(deepcopy(model).to("cuda", dtype), PARAMS)
    on_gpu = {name: tensor.cuda() for name, tensor in batch.items()}
    if dtype != torch.float32:
        assert padding_free.why_no_flash(dtype, 16) == ""  # it is tried outside of what is profiled
    with torch.profiler.profile() as profiled:
        outputs = padding_free.forward(model, on_gpu, TASKS[0].model.inputs, 0)
        found = loss_and_gradients(outputs, on_gpu, model, TASKS[0])
    flash = any("_flash_attention_backward" in event.key for event in profiled.key_averages())
    assert flash is (dtype != torch.float32)
    in_64_bits = [{name: tensor.cpu().double() for name, tensor in given.items()} for given in (found, wanted)]
    torch.testing.assert_close(*in_64_bits, rtol=near, atol=near)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_dropout_on_a_gpu_is_as_likely_as_asked() -> None:
    """Of values that are all 1, attention gives the share that is kept, over the probability to keep."""
    zeros, ones = torch.zeros(4096, 4, 16, device="cuda").bfloat16(), torch.ones(4096, 4, 16, device="cuda").bfloat16()
    begins = torch.arange(0, 4097, 128, device="cuda", dtype=torch.int32)
    found = padding_free._flash(zeros, zeros, ones, begins, 128, 0.3, None).float()
    assert 0.99 < float(found.mean()) < 1.01 and 0.03 < float(found[..., 0].std()) < 0.09
