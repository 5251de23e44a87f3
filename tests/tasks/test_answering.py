"""The hook that turns a batch into reduced results: by a forward pass, and by a model that writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from finetune.models.prediction import predict, predict_rows
from finetune.tasks import load_task
from finetune.tasks.answering import forward, with_loss
from finetune.tasks.task import Model, Objective, State
from tests.conftest import build_wordpiece
from tests.families import SEQ2SEQ

QUESTIONS = load_task("question_answering")
WORDS = ["the cat sat", "a dog ran over the hill and far away", "birds", "no tree grows here"]
ROWS = [{"id": str(i), "row": i, "source": text} for i, text in enumerate(WORDS)]
STATE = State(max_seq_length=32, pad_to_max_length=False)
INPUTS = frozenset({"input_ids", "attention_mask", "labels"})
NEW = 6  # tokens that are written


def loss(outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = outputs.logits.transpose(1, 2)
    return functional.cross_entropy(logits, batch["labels"], ignore_index=-100, reduction="none").sum(1)


OBJECTIVE = Objective(labels=frozenset({"labels"}), loss=loss, items=lambda batch: (batch["labels"] != -100).sum(1))


def answer(model: Any, batch: dict[str, torch.Tensor], state: State) -> dict[str, torch.Tensor]:
    """Write with the model; with labels, score them by a forward pass besides."""
    written = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=NEW, do_sample=False
    )
    padded = functional.pad(written, (0, NEW + 1 - written.shape[1]), value=model.config.pad_token_id)
    reduced = {"row": batch["row"], "written": padded}
    if "labels" not in batch:
        return reduced
    return with_loss(reduced, forward(model, batch, INPUTS), batch, OBJECTIVE)


def encode(rows: Any, tokenizer: Any, state: State) -> dict[str, list[Any]]:
    encoded = tokenizer([row["source"] for row in rows])
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "row": [*range(len(rows))]}


def decode(reduced: dict[str, Any], rows: Any, state: State) -> list[dict[str, Any]]:
    order = np.argsort(reduced["row"])
    return [{"tokens": reduced["written"][i].tolist()} for i in order]


def writing(tokenizer: Any) -> Any:
    """A task whose model writes: another hook, and other functions around it; nothing else knows."""
    return replace(
        QUESTIONS,
        data=replace(
            QUESTIONS.data,
            encode=encode,
            padding=lambda _: {"input_ids": tokenizer.pad_token_id},
            characters=lambda row: len(row["source"]),
        ),
        model=Model(
            auto_model=AutoModelForSeq2SeqLM,
            families={BartConfig: BartForConditionalGeneration},
            inputs=INPUTS,
            head_config=lambda _state: {},
            adopt=lambda state, _config: state,
        ),
        objective=OBJECTIVE,
        answer=answer,
        decoding=replace(QUESTIONS.decoding, decode=decode),
    )


def tiny(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    pad = tokenizer.pad_token_id
    ids = {"pad_token_id": pad, "bos_token_id": pad, "eos_token_id": 1, "decoder_start_token_id": pad}
    config = BartConfig(**SEQ2SEQ, **ids, vocab_size=len(tokenizer), forced_eos_token_id=None, init_std=0.5)
    return BartForConditionalGeneration(config).eval()


def test_a_model_that_writes_takes_the_same_path(tmp_path: Path) -> None:
    """Batches of several rows, longest first, come back in the order of the rows, each as it is written alone."""
    tokenizer = build_wordpiece(tmp_path)
    model, task = tiny(tokenizer), writing(tokenizer)
    predictions = predict_rows(model, tokenizer, ROWS, task, STATE, batch_size=3)
    for row, prediction in zip(ROWS, predictions, strict=True):
        ids = tokenizer(row["source"], return_tensors="pt")["input_ids"]
        alone = model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False)
        assert prediction["tokens"][: alone.shape[1]] == alone[0].tolist()
    assert len({tuple(p["tokens"]) for p in predictions}) > 1


def test_its_labels_are_scored_by_the_forward_pass(tmp_path: Path) -> None:
    tokenizer = build_wordpiece(tmp_path)
    model, task = tiny(tokenizer), writing(tokenizer)
    labels = torch.tensor([[5, 6, 7, 1], [8, 1, -100, -100]])
    inputs = tokenizer([row["source"] for row in ROWS[:2]], return_tensors="pt", padding=True)
    batch = {**inputs, "labels": labels, "row": torch.arange(2)}
    batch.pop("token_type_ids", None)
    reduced, mean = predict(model, [batch], task, STATE, keep_batches=1)
    with torch.no_grad():
        wanted = float(model(**{name: batch[name] for name in INPUTS}).loss)
    assert reduced["items"].tolist() == [4, 2] and mean is not None
    assert abs(mean - wanted) < 1e-5
