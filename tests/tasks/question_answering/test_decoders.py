"""Questions asked of models that read from left to right, and of those that read and write."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.models.loading import load_model
from finetune.models.prediction import predict_rows
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.tasks.answering import forward
from finetune.tasks.question_answering import TASK
from finetune.tasks.question_answering import windows as qa_windows
from tests.families import build_family
from tests.tasks.question_answering.conftest import row, state

DECODERS = ("gpt2", "mistral")
CONTEXT = "The report on the new engine was written by Ada in the year 1843."


def loaded(family: str, folder: Path) -> tuple[Any, Any]:
    build_family(family, folder)
    return load_model(folder, TASK, None)[0].eval(), load_tokenizer(folder, TASK)


@pytest.mark.parametrize("family", [*DECODERS, "t5", "mbart", "xlnet"])
def test_no_answer_depends_on_the_context(family: str, tmp_path: Path) -> None:
    """It could not, if a decoder predicted it at the first token, which sees nothing but itself."""
    model, tokenizer = loaded(family, tmp_path)
    rows = [row(context, "Who wrote it?") for context in (CONTEXT, CONTEXT.replace("Ada", "Grace"))]
    columns = qa_windows.encode(rows, tokenizer, state())
    logits = []
    for ids, mask, null, starts in zip(
        *(columns[name] for name in ("input_ids", "attention_mask", "null_position", "offset_start")), strict=True
    ):
        assert starts[null] == qa_windows.NO_SPAN
        with torch.no_grad():
            outputs = model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask]))
        logits.append((float(outputs.start_logits[0, null]), float(outputs.start_logits[0, 0])))
    (one, first), (other, first_of_other) = logits
    assert one != other
    assert (first == pytest.approx(first_of_other)) == (family in DECODERS)


@pytest.mark.parametrize("family", DECODERS)
def test_the_closing_token_changes_no_other_logit(family: str, tmp_path: Path) -> None:
    """So that the tokenizer alone, without this package, leads to the same spans."""
    model, tokenizer = loaded(family, tmp_path)
    asked = row(CONTEXT, "Who wrote it?")
    columns = qa_windows.encode([asked], tokenizer, state(max_seq_length=100))
    plain = tokenizer(asked["question"], asked["context"], return_tensors="pt")
    assert columns["input_ids"][0] == [*plain["input_ids"][0].tolist(), tokenizer.eos_token_id]
    with torch.no_grad():
        without = model(**plain).start_logits[0]
        batch = {name: torch.tensor(columns[name]) for name in ("input_ids", "attention_mask")}
        with_it = forward(model, batch, TASK.model.inputs).start_logits[0]
    assert torch.allclose(with_it[:-1], without, atol=1e-5)


@pytest.mark.parametrize("family", [*DECODERS, "t5", "bart", "xlnet", "deberta-v2"])
@pytest.mark.parametrize("pad", [False, True])
def test_padding_changes_no_answer(family: str, pad: bool, tmp_path: Path) -> None:
    model, tokenizer = loaded(family, tmp_path)
    rows = [row(CONTEXT[:30], "Who?"), row(CONTEXT, "Who wrote the report on the engine?")]
    made = state(max_seq_length=100, no_answer=True)
    alone = [predict_rows(model, tokenizer, [one], TASK, made, 1)[0] for one in rows]
    together = predict_rows(model, tokenizer, rows, TASK, replace(made, pad_to_max_length=pad), 2)
    for one, other in zip(alone, together, strict=True):
        assert (one["text"], one["start"]) == (other["text"], other["start"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["null_score"] == pytest.approx(other["null_score"], abs=1e-4)
