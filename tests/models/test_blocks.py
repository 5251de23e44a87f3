"""Heads and columns that are cut out: the model computes what it did with their gates closed, and is loaded again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from finetune.core.errors import ModelError
from finetune.models import blocks
from finetune.models.adapt import pruning
from finetune.models.facts import facts_of
from finetune.models.loading import empty_model, load_model
from finetune.models.stored.configs import load_config
from finetune.params.finetune import QuestionAnsweringParams
from finetune.tasks import load_task
from tests.families import FAMILIES, OTHERS

QA, TC = load_task("question_answering"), load_task("token_classification")
HEADS, COLUMNS, LAYERS = 4, 24, 2
DISTILBERT = {"dim": 32, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": COLUMNS}
SIZES = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": COLUMNS}
IDS = torch.arange(5, 29).reshape(2, 12)
FOLDERS = ("preprocess_output", "model_selector_output", "pytorch_model_folder", "mlflow_model_folder")
PARAMS = QuestionAnsweringParams(**{name: Path() for name in FOLDERS}, apply_pruning=True)
Kept = Sequence[tuple[Sequence[int], Sequence[int]]]
SOME: Kept = (((0, 3), (1, 2, 5, 8, 13, 21)), ((2,), tuple(range(4, 20))))


def build(family: str, task: Any = QA) -> Any:
    kind = transformers.AutoConfig.for_model(family).__class__
    sizes = DISTILBERT if family == "distilbert" else SIZES
    config = kind(vocab_size=40, max_position_embeddings=40, initializer_range=0.3, **sizes)
    torch.manual_seed(3)
    return task.model.auto_model(config).from_config(config).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    mask = torch.ones_like(IDS)
    mask[1, 9:] = 0
    found = model.eval()(input_ids=IDS, attention_mask=mask)
    return found.logits if "logits" in found else torch.stack([found.start_logits, found.end_logits])


def closed(model: Any, kept: Kept) -> Any:
    """The model with gates, of which only those are open."""
    model, _ = pruning.apply(model, PARAMS)
    for layer, (heads, columns) in zip(pruning.gated_layers(model), kept, strict=True):
        for gate, places in ((layer.heads, heads), (layer.columns, columns)):
            gate.gates.zero_()[list(places)] = 1
    return model


@pytest.mark.parametrize("family", blocks.FAMILIES)
@pytest.mark.parametrize("task", [QA, TC], ids=lambda task: task.name)
def test_what_is_cut_was_behind_closed_gates(family: str, task: Any, tmp_path: Path) -> None:
    """And the folder is loaded with the same logits, in less than stock transformers would take."""
    whole = build(family, task)
    everything = logits(whole)
    gated = closed(whole, SOME)
    shut = logits(gated)
    assert not torch.allclose(shut, everything, atol=1e-2)
    model = pruning.restore(gated)
    assert not any(isinstance(module, pruning.GatedLinear) for module in model.modules())
    assert torch.allclose(logits(model), shut, atol=1e-5)
    model.save_pretrained(tmp_path)
    again, new = load_model(tmp_path, task, None)
    assert not new and torch.equal(logits(again), logits(model))
    assert type(again).__name__ == type(model).__name__ and again.num_parameters() == model.num_parameters()
    empty = empty_model(load_config(tmp_path), task)
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(whole).from_pretrained(tmp_path)


@settings(max_examples=30)
@given(data=st.data(), family=st.sampled_from(sorted(blocks.FAMILIES)))
def test_any_choice(data: st.DataObject, family: str) -> None:
    def places(count: int) -> list[int]:
        return sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))

    kept = [(places(HEADS), places(COLUMNS)) for _ in range(LAYERS)]
    gated = closed(build(family), kept)
    shut = logits(gated)
    assert torch.allclose(logits(pruning.restore(gated)), shut, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_pruned_model_is_pruned_again(family: str, tmp_path: Path) -> None:
    """The heads of the second time are counted among those that the first time has left."""
    model = pruning.restore(closed(build(family), SOME))
    model.save_pretrained(tmp_path / "once")
    again, _ = load_model(tmp_path / "once", QA, None)
    gated = closed(again, (((1,), (0, 5)), ((0,), tuple(range(8)))))
    shut = logits(gated)
    pruning.restore(gated).save_pretrained(tmp_path / "twice")
    last, _ = load_model(tmp_path / "twice", QA, None)
    assert torch.allclose(logits(last), shut, atol=1e-5)
    assert json.loads((tmp_path / "twice" / "config.json").read_text())[blocks.KEY] == [
        {"heads": [3], "columns": 2},
        {"heads": [2], "columns": 8},
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    model = pruning.restore(closed(build("bert"), SOME))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (3, "is not a list"),
        ([{"heads": [0]}, {"heads": [2], "columns": 16}], r"\[0\] has no 'columns'"),
        ([{"heads": [0, 3], "columns": 6}], "has 1 layers, num_hidden_layers is 2"),
        ([{"heads": [0, 4], "columns": 6}, {"heads": [2], "columns": 16}], r"\[0\].heads are \[0, 4\], of 4"),
        ([{"heads": [3, 0], "columns": 6}, {"heads": [2], "columns": 16}], r"\[0\].heads are \[3, 0\], of 4"),
        ([{"heads": [], "columns": 6}, {"heads": [2], "columns": 16}], r"\[0\].heads are \[\], of 4"),
        ([{"heads": [0], "columns": 6}, {"heads": [2], "columns": 0}], r"\[1\].columns is 0, of 24"),
        ([{"heads": [0], "columns": 6}, {"heads": [2], "columns": 25}], r"\[1\].columns is 25, of 24"),
    ],
)
def test_a_config_that_says_what_cannot_be(saved: Path, tmp_path: Path, entry: object, why: str) -> None:
    values = json.loads((saved / "config.json").read_text()) | {blocks.KEY: entry}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=why):
        load_model(tmp_path, QA, None)


def test_a_config_without_its_entry(saved: Path, tmp_path: Path) -> None:
    """The weights then don't fit, which is said by their names; nothing starts at random without a word."""
    values = json.loads((saved / "config.json").read_text())
    del values[blocks.KEY]
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"their sizes are not those|has another size"):
        load_model(tmp_path, QA, None)


def test_a_checkpoint_whose_gates_are_closed(tmp_path: Path) -> None:
    """Loaded without its gates it would be another model."""
    model = closed(build("bert"), SOME)
    assert "bert.encoder.layer.0.output.dense.gate.gates" in model.state_dict()
    model.save_pretrained(tmp_path)
    assert "bert.encoder.layer.0.output.dense.gate.gates" in load_file(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="is a checkpoint of a run that prunes"):
        load_model(tmp_path, QA, None)


def test_another_task_goes_on_with_a_pruned_body(saved: Path, tmp_path: Path) -> None:
    model, new = load_model(saved, TC, None)
    assert all("classifier" in name for name in new)
    assert [layer.heads for layer in blocks.layers(model)] == [2, 1]
    assert [layer.columns for layer in blocks.layers(model)] == [6, 16]


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_the_families(family: str) -> None:
    """Which blocks can be cut is known of the families of the list, and of no other that is tested here."""
    name, _, _, values = {**FAMILIES, **OTHERS}[family]
    config = getattr(transformers, name)(**values)
    if type(config) not in QA.model.families:
        pytest.skip("has no head for questions")
    assert facts_of(empty_model(config, QA)).has_blocks == (config.model_type in blocks.FAMILIES)
