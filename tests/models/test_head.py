"""The head: where it is, and what becomes of one that a checkpoint brings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForQuestionAnswering,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
)

from finetune.core.errors import ModelError
from finetune.models.head import _renew, describe_new, head_modules, head_parameters
from finetune.models.loading import empty_model, load_model
from finetune.tasks import load_task
from tests.families import DECODER, FAMILIES, SEQ2SEQ, SIZES
from tests.tasks.token_classification.conftest import state as tc_state

QUESTIONS, TAGS = load_task("question_answering"), load_task("token_classification")
TINY = {"vocab_size": 50, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = ["B-LOC", "I-LOC", "O"]


def other_families(task: Any) -> list[Any]:
    return sorted((kind for kind in task.model.families), key=lambda kind: str(kind.model_type))


@pytest.mark.slow
@pytest.mark.parametrize("task", [QUESTIONS, TAGS], ids=lambda task: task.name)
def test_the_head_is_what_the_body_lacks(task: Any) -> None:
    """Of every family that transformers has a head for and that can be built here by its config's defaults."""
    compared = 0
    for kind in other_families(task):
        try:
            config = kind()
            for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"):
                if name in config.to_dict():
                    setattr(config, name, 2)
            with torch.device("meta"):
                model, body = empty_model(config, task), AutoModel.from_config(config)
        except (AttributeError, ImportError, ModelError, TypeError, ValueError):
            continue  # needs values or packages of its own
        of_body = {name for name, _ in body.named_parameters()}
        lacking = [
            name
            for name, _ in model.named_parameters()
            if name not in of_body and name.removeprefix(f"{model.base_model_prefix}.") not in of_body
        ]
        assert head_parameters(model) == lacking, config.model_type
        compared += 1
    assert compared > 60


def saved(model: Any, folder: Path, labels: list[str] | None = None) -> Any:
    if labels:
        model.config.id2label, model.config.label2id = dict(enumerate(labels)), {n: i for i, n in enumerate(labels)}
    model.save_pretrained(folder)
    return model


FOREIGN = {
    "bert": (BertForSequenceClassification, BertConfig, TINY),
    "llama": (LlamaForSequenceClassification, LlamaConfig, {**DECODER, "vocab_size": 50, "pad_token_id": 0}),
    "modernbert": (
        ModernBertForSequenceClassification,
        ModernBertConfig,
        {**SIZES, "vocab_size": 50, "pad_token_id": 0, "global_attn_every_n_layers": 1},
    ),
}


@pytest.mark.parametrize(
    ("family", "task", "classes"),
    [("bert", TAGS, 3), ("bert", TAGS, 2), ("llama", TAGS, 3), ("modernbert", QUESTIONS, 2)],
)
def test_the_head_of_another_task_is_replaced(family: str, task: Any, classes: int, tmp_path: Path) -> None:
    """Sentence classifiers whose head has the names, even sizes and classes, of the one that is wanted: no mismatch."""
    architecture, config, values = FOREIGN[family]
    sentence = saved(architecture(config(num_labels=classes, **values)), tmp_path, LABELS[:classes])
    model, new = load_model(tmp_path, task, tc_state(labels=LABELS) if task is TAGS else None)
    assert set(new) == set(head_parameters(model))
    theirs = dict(sentence.named_parameters())
    assert all(not p.equal(theirs[n]) for n, p in model.named_parameters() if n in new and n in theirs and p.ndim > 1)
    (line,) = describe_new(model, new, model.config.architectures)
    assert f"new head, random until trained: {new[0]}" in line and f"saved from {architecture.__name__}" in line


def test_a_head_of_other_sizes_is_refused_by_name(tmp_path: Path) -> None:
    saved(BertForTokenClassification(BertConfig(num_labels=2, **TINY)), tmp_path, ["X", "Y"])
    with pytest.raises(ModelError) as raised:
        load_model(tmp_path, TAGS, tc_state(labels=LABELS), ignore_mismatched_sizes=False)
    text = str(raised.value)
    assert "classifier.weight" in text and "[2, 64] instead of [3, 64]" in text
    assert "classifier.bias" in text and "[2] instead of [3]" in text and "--ignore_mismatched_sizes true" in text
    _, new = load_model(tmp_path, TAGS, tc_state(labels=LABELS), ignore_mismatched_sizes=True)
    assert new == ["classifier.bias", "classifier.weight"]


def test_missing_weights_of_the_body_are_a_warning(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(BertForTokenClassification(BertConfig(num_labels=3, **TINY)), tmp_path, LABELS)
    weights = load_file(tmp_path / "model.safetensors")
    name = "bert.embeddings.LayerNorm.weight"
    save_file(
        {k: w for k, w in weights.items() if k != name}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    model, new = load_model(tmp_path, TAGS, None)
    assert new == [name]
    assert describe_new(model, new, ["BertForTokenClassification"]) == [
        f"warning: weights of the body are missing, and start at random: {name}"
    ]


@pytest.mark.parametrize(
    ("labels", "kept", "others"),
    [
        (["O", "I-LOC", "B-LOC"], "3 of 3", ""),
        (["B-LOC", "O"], "2 of 2", "; left out, since no row has them: I-LOC"),
        (["B-LOC", "B-ORG", "I-LOC", "I-ORG", "O"], "3 of 5", "; new, at random: B-ORG, I-ORG"),
        (["B-ORG", "O"], "1 of 2", "; new, at random: B-ORG; left out, since no row has them: B-LOC, I-LOC"),
    ],
)
def test_classes_that_go_on(
    labels: list[str], kept: str, others: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In whatever order: each class keeps its row, new ones get a new head's."""
    before = BertForTokenClassification(BertConfig(num_labels=3, **TINY))
    torch.nn.init.normal_(before.classifier.bias)
    saved(before, tmp_path, LABELS)
    model, found = load_model(tmp_path, TAGS, tc_state(labels=labels), ignore_mismatched_sizes=True)
    assert found == []  # not the whole of any
    assert [model.config.id2label[i] for i in range(len(labels))] == labels
    for name in ("weight", "bias"):
        now, was = model.classifier.get_parameter(name), before.classifier.get_parameter(name)
        for i, label in enumerate(labels):
            assert now[i].equal(was[LABELS.index(label)]) if label in LABELS else float(now[i].abs().max()) < 0.2
    said = f"classes: {kept} go on from the weights they have{others}\n"
    assert capsys.readouterr().out == said
    same, found = load_model(tmp_path, TAGS, tc_state(labels=LABELS))
    assert found == [] and same.classifier.weight.equal(before.classifier.weight)
    assert capsys.readouterr().out == ""


def test_classes_without_names_keep_their_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a tagger from elsewhere, which evaluation scores by the names of the data."""
    before = saved(BertForTokenClassification(BertConfig(num_labels=3, **TINY)), tmp_path)
    model, new = load_model(tmp_path, TAGS, tc_state(labels=LABELS))
    assert new == [] and model.classifier.weight.equal(before.classifier.weight)
    assert "have no names, so they keep their places" in capsys.readouterr().out
    assert load_model(tmp_path, TAGS, tc_state(labels=LABELS[:2]), True)[1] == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize("architecture", ["RobertaForTokenClassification", "TFBertForTokenClassification", None])
def test_a_head_of_the_task_is_kept_whoever_saved_it(architecture: str | None, tmp_path: Path) -> None:
    before = saved(BertForTokenClassification(BertConfig(num_labels=3, **TINY)), tmp_path, LABELS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": architecture and [architecture]}))
    model, new = load_model(tmp_path, TAGS, tc_state(labels=LABELS))
    assert new == [] and model.classifier.weight.equal(before.classifier.weight)


def test_a_config_that_names_more_classes_than_there_are(tmp_path: Path) -> None:
    before = saved(BertForTokenClassification(BertConfig(num_labels=3, **TINY)), tmp_path, LABELS)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {**config["id2label"], "3": "B-ORG"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "label2id": {}}))
    model, _ = load_model(tmp_path, TAGS, tc_state(labels=["B-ORG", "O"]), ignore_mismatched_sizes=True)
    assert model.classifier.weight[1].equal(before.classifier.weight[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_renewed_head_is_like_a_new_one(family: str) -> None:
    config_class, _, _, values = FAMILIES[family]
    config = getattr(transformers, config_class)(vocab_size=50, pad_token_id=0, num_labels=64, **values)
    torch.manual_seed(0)
    model = TAGS.model.auto_model(config).from_config(config)
    names = {name for name in head_parameters(model) if model.get_parameter(name).ndim > 1}
    before = {name: float(model.get_parameter(name).std()) for name in names}
    _renew(model, set(head_parameters(model)))
    assert names
    for name in names:
        assert float(model.get_parameter(name).std()) == pytest.approx(before[name], rel=0.25)


def test_a_renewed_head_begins_as_a_new_one(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=50, num_hidden_layers=1, hidden_size=64, num_attention_heads=2, intermediate_size=16)
    config.id2label = {0: "X", 1: "Y", 2: "Z"}
    saved = BertForTokenClassification(config)
    saved.classifier.bias.data.fill_(7)
    saved.save_pretrained(tmp_path)
    model, new = load_model(tmp_path, TAGS, tc_state())
    assert new == ["classifier.bias", "classifier.weight"]
    assert 0.01 < float(model.classifier.weight.detach().std()) < 0.03 and not model.classifier.bias.any()


def test_what_pretraining_left_of_a_head_is_kept(tmp_path: Path) -> None:
    """ModernBERT's dense layer before the classifier comes from masked language modelling."""
    config = ModernBertConfig(vocab_size=50, pad_token_id=0, **FAMILIES["modernbert"][3])
    pretrained = ModernBertForMaskedLM(config)
    pretrained.save_pretrained(tmp_path)
    model, new = load_model(tmp_path, TAGS, tc_state())
    assert new == ["classifier.bias", "classifier.weight"]
    assert model.head.dense.weight.equal(pretrained.head.dense.weight)


def test_a_head_of_questions_is_kept_whatever_labels_its_config_names(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50, num_labels=3, **FAMILIES["gpt2"][3])
    saved = GPT2ForQuestionAnswering(config)
    saved.save_pretrained(tmp_path)
    model, new = load_model(tmp_path, QUESTIONS, None)
    assert new == [] and model.qa_outputs.weight.equal(saved.qa_outputs.weight)


SEQ2SEQ_IDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
GENERATION = {
    "t5": ("T5ForConditionalGeneration", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 1}),
    "bart": ("BartForConditionalGeneration", {**SEQ2SEQ, **SEQ2SEQ_IDS}),
    "marian": ("MarianMTModel", {**SEQ2SEQ, **SEQ2SEQ_IDS}),
    "mbart": ("MBartForConditionalGeneration", {**SEQ2SEQ, **SEQ2SEQ_IDS}),
    "llama": ("LlamaForCausalLM", {**SIZES, "num_key_value_heads": 1}),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", GENERATION)
def test_what_writes_words_is_of_the_body(family: str, tied: bool) -> None:
    """A generation class has no head, though its lm_head is a linear layer beside the body."""
    name, sizes = GENERATION[family]
    config = transformers.AutoConfig.for_model(family, **{**sizes, "vocab_size": 50}, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    assert "lm_head" in dict(model.named_children())
    assert head_modules(model) == head_parameters(model) == []
