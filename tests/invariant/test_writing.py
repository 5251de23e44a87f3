"""One loss trajectory of models that write, however steps are divided, and a plain loop that gives it too."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    get_linear_schedule_with_warmup,
    set_seed,
)

from finetune import run
from finetune.data.sampler import LengthGroupedSampler, window_lengths
from tests.conftest import finetune_words, prepare
from tests.families import build_family
from tests.forking import Forks
from tests.invariant.test_loss import SHARED, STEPS, Taught, Trajectory, padded, trajectory
from tests.launching import launch
from tests.writers import WRITERS, build_writer

pytestmark = pytest.mark.slow
thorough = [pytest.mark.thorough]
FAMILIES = ("t5", "bart", "marian", "llama")  # the last is asked questions
# One family is divided, in one way, by default.
DIVIDED = [
    *(pytest.param(f, "alone", 2, 4, marks=thorough if f != "t5" else []) for f in FAMILIES),
    *(pytest.param(f, "azure", 2, 2, marks=[pytest.mark.distributed, *thorough]) for f in FAMILIES),
]
IGNORED = -100
GIVEN = {**SHARED, "per_device_eval_batch_size": 13}


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without dropout, and 160 pairs, or questions, whose targets differ in length."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        given = {"max_seq_length": 150, "doc_stride": 16, "max_answer_length": 40}
        model = build_family("llama", folder / "tiny")
        return prepare(folder, model, "generative_question_answering", (160, 13, 12), **given)
    # A sum near zero that rounding moves across it would give ReLU, T5's own, another gradient.
    smooth = {"feed_forward_proj": "gated-gelu"} if request.param == "t5" else {}
    model = build_writer(request.param, folder / "tiny", **smooth)
    assert WRITERS[request.param][2][0] == "en"
    lengths = {"max_seq_length": 60, "max_target_length": 60}
    return prepare(folder, model, "translation", (160, 13, 12), source_lang="en", target_lang="tav", **lengths)


@pytest.fixture(scope="module")
def whole_batch(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    folder = tmp_path_factory.mktemp("whole")
    run.main(finetune_words(prepared, folder, **GIVEN, per_device_train_batch_size=8))
    return trajectory(folder)


def test_plain_loop(prepared: Path, whole_batch: Trajectory) -> None:
    """Weights and decoder inputs as transformers makes them of the labels, loss as PyTorch has it."""
    assert whole_batch.losses == pytest.approx(plain_losses(prepared), abs=1e-5)


@pytest.mark.parametrize(("prepared", "how", "batch", "accumulation"), DIVIDED, indirect=["prepared"])
def test_divided_steps(
    forks: Forks,
    prepared: Path,
    tmp_path: Path,
    whole_batch: Trajectory,
    how: str,
    batch: int,
    accumulation: int,
) -> None:
    """Steps of 8 pairs: by accumulation, and by processes, of which each writes its part of validation."""
    words = finetune_words(
        prepared, tmp_path, **GIVEN, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
    )
    if how == "alone":
        run.main(words)
    else:
        launched = launch(tmp_path, words, how, forks=forks)
        assert set(launched.codes()) == {0}, launched.said()
    divided = trajectory(tmp_path)
    assert divided.losses == pytest.approx(whole_batch.losses, abs=1e-5)
    assert divided.norms == pytest.approx(whole_batch.norms, abs=1e-5)
    assert divided.evaluation == pytest.approx(whole_batch.evaluation, abs=1e-4)


@pytest.mark.parametrize("prepared", ["t5"], indirect=True)
def test_label_smoothing(prepared: Path, tmp_path: Path) -> None:
    """As torch.nn.CrossEntropyLoss has it, in training alone."""
    words = finetune_words(
        prepared, tmp_path, **GIVEN, label_smoothing_factor=0.2, per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    run.main(words)
    assert trajectory(tmp_path).losses == pytest.approx(plain_losses(prepared, smoothing=0.2), abs=1e-5)


def plain_losses(prepared: Path, smoothing: float = 0.0, taught: Taught = lambda loss, *_: loss) -> list[float]:
    """A loop with nothing of ours but the order of the windows; `taught` as in test_loss."""
    set_seed(42)
    folder = prepared / "model" / "model"
    reads = AutoConfig.from_pretrained(folder).is_encoder_decoder
    model: Any = (AutoModelForSeq2SeqLM if reads else AutoModelForCausalLM).from_pretrained(folder).train()
    norms = ("bias", "norm.weight", "layernorm.weight", "layernorm_embedding.weight", "layer_norm_embedding.weight")
    plain = [p for name, p in model.named_parameters() if name.endswith(norms)]
    decayed = [p for name, p in model.named_parameters() if not name.endswith(norms)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=SHARED["learning_rate"], eps=SHARED["adam_epsilon"])
    scheduler = get_linear_schedule_with_warmup(optimizer, SHARED["warmup_steps"], STEPS)
    found = []
    for batch in itertools.islice(plain_batches(prepared / "data" / "train" / "windows", model), STEPS):
        if reads:
            outputs = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
            labels = batch["labels"].flatten()
            loss = functional.cross_entropy(outputs.logits.flatten(0, 1), labels, label_smoothing=smoothing)
        else:
            outputs = model(**batch)
            loss = outputs.loss
        loss = taught(loss, outputs, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SHARED["max_grad_norm"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def plain_batches(windows: Path, model: Any) -> Iterator[dict[str, torch.Tensor]]:
    data = load_from_disk(windows)
    order = LengthGroupedSampler(window_lengths(data), 8, seed=42)
    fill = {"input_ids": model.config.pad_token_id, "attention_mask": 0, "labels": IGNORED}
    for epoch in range(STEPS):
        order.set_epoch(epoch)
        chosen = list(order)
        for first in range(0, len(chosen), 8):
            rows = [data[i] for i in chosen[first : first + 8]]
            batch = {name: padded([row[name] for row in rows], value) for name, value in fill.items()}
            if not model.config.is_encoder_decoder:
                yield {**batch, "labels": padded([answer_alone(row) for row in rows], IGNORED)}
                continue
            yield {**batch, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])}


def answer_alone(window: dict[str, Any]) -> list[int]:
    """Labels as transformers takes them, which moves them itself: the tokens of the answer."""
    ids = window["input_ids"]
    prompt = next(i for i, label in enumerate(window["labels"]) if label != IGNORED) + 1
    return [*[IGNORED] * prompt, *ids[prompt:]]
