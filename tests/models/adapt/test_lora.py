"""LoRA, DoRA and rank-stabilised LoRA: what is trained, and that merging changes no answer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig

from finetune import run
from finetune.core.errors import ModelError
from finetune.models.adapt import lora
from finetune.models.adapt.adaptations import adapt, recompute
from finetune.models.facts import facts_of
from finetune.models.head import head_parameters
from finetune.models.loading import load_model
from finetune.params.case import Case
from finetune.params.finetune import QuestionAnsweringParams
from finetune.params.rules import errors
from finetune.tasks import load_task
from tests import families
from tests.conftest import finetune_words
from tests.families import build_family

TASK = load_task("question_answering")
FOLDERS = ("preprocess_output", "model_selector_output", "pytorch_model_folder", "mlflow_model_folder")
PARAMS = replace(QuestionAnsweringParams(**{name: Path() for name in FOLDERS}), apply_lora=True, lora_r=4, lora_alpha=8)
IDS = torch.arange(20, 44).reshape(2, 12)
KINDS = pytest.mark.parametrize("kind", lora.KINDS)
FAMILIES = pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = {name: build_family(name, tmp_path_factory.mktemp(name)) for name in ("bert", "gpt2", "t5", "xlnet")}
    return made.__getitem__


def trained(folder: Path, kind: str) -> Any:
    """As training would leave it: every trained weight is moved."""
    model, _ = load_model(folder, TASK, None)
    adapted, said = lora.apply(model, replace(PARAMS, lora_type=kind))
    print("\n".join(said))
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return adapted.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    outputs = model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    return torch.cat([outputs["start_logits"], outputs["end_logits"]])


@KINDS
@FAMILIES
def test_merging_changes_no_answer(family: str, kind: str, folder: Any) -> None:
    adapted = trained(folder(family), kind)
    before = logits(adapted)
    merged = lora.restore(adapted)
    assert float((logits(merged) - before).abs().max()) < 1e-5
    plain, _ = load_model(folder(family), TASK, None)
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in plain.named_parameters()}
    of_layers = tuple(f".{layer}.weight" for layer in lora.targets(plain))
    changed = {n for n, p in merged.named_parameters() if not p.equal(plain.get_parameter(n))}
    adapted_weights = {n for n, _ in plain.named_parameters() if n.endswith(of_layers)}
    assert changed == adapted_weights | set(head_parameters(plain)) and adapted_weights


@pytest.mark.parametrize(("kind", "scale"), [("lora", 8 / 4), ("rslora", 8 / 4**0.5)])
def test_scale(kind: str, scale: float, folder: Any) -> None:
    adapted, (plain, _) = trained(folder("bert"), kind), load_model(folder("bert"), TASK, None)
    name = "bert.encoder.layer.0.attention.self.query"
    layer = adapted.base_model.model.get_submodule(name)
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = lora.restore(adapted)
    wanted = plain.get_submodule(name).weight + scale * product
    assert torch.allclose(merged.get_submodule(name).weight, wanted, atol=1e-6)


def test_dora_turns_and_stretches(folder: Any) -> None:
    """Liu et al. 2024, equation 5: m (W + s B A) / |W + s B A|, norms over each output's weights."""
    adapted, (plain, _) = trained(folder("bert"), "dora"), load_model(folder("bert"), TASK, None)
    name = "bert.encoder.layer.1.attention.self.value"
    layer = adapted.base_model.model.get_submodule(name)
    turned = plain.get_submodule(name).weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight[:, None]
    merged = lora.restore(adapted)
    wanted = magnitude * turned / turned.norm(dim=1, keepdim=True)
    assert torch.allclose(merged.get_submodule(name).weight, wanted, atol=1e-5)


@pytest.mark.parametrize("family", [*families.FAMILIES, *families.OTHERS])
def test_trained_in_16_bits_with_layers_computed_twice(family: str, tmp_path: Path) -> None:
    model, _ = load_model(build_family(family, tmp_path), load_task("token_classification"), None)
    asked = replace(PARAMS, gradient_checkpointing=model.supports_gradient_checkpointing)
    adapted = adapt(model, asked).model.train()
    recompute(adapted, asked)
    with torch.autocast("cpu", torch.bfloat16, enabled=family != "deberta"):  # which is refused (model.py)
        outputs = adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    outputs["logits"].float().square().sum().backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    moved = [name for name, gradient in gradients.items() if gradient.any()]
    assert len([name for name in moved if ".lora_B." in name]) >= 2 and any("modules_to_save" in name for name in moved)


@pytest.mark.slow
def test_a_run_with_layers_computed_twice_gives_the_same_weights(prepared: Path, tmp_path: Path) -> None:
    """The embeddings are frozen: without a graph through them, no layer below the head would learn."""
    given = {"apply_lora": "true", "max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    for again in ("true", "false"):
        run.main(finetune_words(prepared, tmp_path / again, **given, gradient_checkpointing=again))
    imported = load_file(prepared / "model" / "model" / "model.safetensors")
    twice, once = (load_file(tmp_path / again / "pytorch" / "model.safetensors") for again in ("true", "false"))
    torch.testing.assert_close(twice, once, atol=1e-6, rtol=0)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not twice[name].equal(imported[name.removeprefix("bert.")])


def test_layers_of_other_families_are_found(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """XLNet's attention has no linear layers; those that it has are outside."""
    model, _ = load_model(folder("xlnet"), TASK, None)
    found = [f"transformer.layer.{i}.ff.layer_{k}" for i in (0, 1) for k in (1, 2)]
    assert lora.targets(model) == found
    trained(folder("xlnet"), "lora")
    assert "no list for xlnet, so adapters on all 4 layers: layer_1, layer_2" in capsys.readouterr().out


class Bag(nn.Module):
    """A family without linear layers in its body."""

    supports_gradient_checkpointing = False
    _no_split_modules: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.config = BertConfig()
        self.config.model_type = "bag"
        self.embeddings, self.qa_outputs = nn.Embedding(9, 4), nn.Linear(4, 2)

    def get_output_embeddings(self) -> None:
        return None


def test_a_model_without_linear_layers_is_refused() -> None:
    (error,) = errors(Case(PARAMS, known_model=facts_of(Bag())))
    assert "a bag has no linear layers" in str(error)
    assert errors(Case(replace(PARAMS, apply_lora=False), known_model=facts_of(Bag()))) == []


def test_a_head_that_would_stay_at_random_is_an_error(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load_model(folder("bert"), TASK, None)
    monkeypatch.setattr(lora, "head_modules", lambda model: [])
    with pytest.raises(ModelError, match=r"the head is qa_outputs.weight, qa_outputs.bias"):
        lora.apply(model, PARAMS)


def test_so_is_anything_else_that_would_be_trained(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft looks for modules by how their names end."""
    model, _ = load_model(folder("bert"), TASK, None)
    monkeypatch.setattr(lora, "head_modules", lambda model: ["qa_outputs", "dense"])
    with pytest.raises(ModelError, match=r"besides adapters, [\s\S]*dense"):
        lora.apply(model, PARAMS)


def test_adapters_that_learnt_nothing_are_a_warning(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = load_model(folder("bert"), TASK, None)
    lora.restore(lora.apply(model, PARAMS)[0])
    assert "warning: 4 adapters have learnt nothing" in capsys.readouterr().out
    lora.restore(trained(folder("bert"), "lora"))
    assert "warning" not in capsys.readouterr().out
