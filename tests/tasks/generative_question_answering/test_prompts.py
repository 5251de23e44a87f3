"""Prompts are those of plain transformers, windows hold the whole context, labels stand where they are predicted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from finetune.core.errors import ParameterError, UnsupportedError
from finetune.data.batches import as_windows, collate
from finetune.models.loading import load_model
from finetune.models.prediction import predict
from finetune.models.stored.tokenizers import imported
from finetune.tasks.generation import targets
from finetune.tasks.generative_question_answering import TASK, prompts
from tests.tasks.generative_question_answering.conftest import build, row, rows, state_of


def labelled(folder: Path, state: prompts.State, asked: list[dict[str, Any]]) -> dict[str, Any]:
    columns = prompts.encode(asked, imported(folder, TASK).tokenizer, state)
    return columns | prompts.label(asked, columns, state)[0]


def test_prompts_and_answers_are_the_tokens_of_plain_transformers(folder: Path) -> None:
    state, asked = state_of(folder, max_answer_length=60), rows(6)
    stock: Any = AutoTokenizer.from_pretrained(folder)
    if hasattr(stock, "src_lang"):
        stock.tgt_lang = stock.src_lang
    columns = labelled(folder, state, asked)
    assert columns["row"] == list(range(6))
    for i, one in enumerate(asked):
        prompt = prompts.filled(state.prompt_template, one["question"], one["context"])
        answer = next(iter(one["answers"]["text"]), "")
        ids, labels = columns["input_ids"][i], columns["labels"][i]
        if state.reads:
            assert ids == stock(prompt)["input_ids"]
            assert labels == stock(text_target=answer)["input_ids"]
            assert columns["decoder_input_ids"][i] == [state.decoder_start_token_id, *labels[:-1]]
        else:  # what is learnt is what stands behind the prompt in one text
            whole = stock(f"{prompt} {answer}" if answer else prompt)["input_ids"] + [stock.eos_token_id]
            assert ids == whole
            assert [label for label in labels if label != -100] == whole[columns["prompt_tokens"][i] :]
            assert len(labels) == len(ids) and labels[columns["prompt_tokens"][i] - 1] != -100


def test_the_loss_is_the_models_own(folder: Path) -> None:
    """For decoders transformers moves the labels itself."""
    state, asked = state_of(folder), rows(5)
    model, _ = load_model(folder, TASK, state)
    tokenizer = imported(folder, TASK).tokenizer
    batch = collate(as_windows(labelled(folder, state, asked)), targets.padding(tokenizer))
    _, mean = predict(model, [batch], TASK, state, keep_batches=1)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids") if name in batch}
    labels = batch["labels"] if state.reads else torch.roll(batch["labels"], 1, dims=1)
    with torch.no_grad():
        assert mean == pytest.approx(float(model(**inputs, labels=labels).loss), abs=1e-5)


@pytest.mark.parametrize("family", ["t5", "gpt2"], indirect=True)
def test_padded_to_the_longest_window(folder: Path) -> None:
    state = state_of(folder, max_seq_length=128, pad_to_max_length=True)
    plain, padded = (labelled(folder, replace(state, pad_to_max_length=p), rows(4)) for p in (False, True))
    for i, ids in enumerate(plain["input_ids"]):
        assert padded["input_ids"][i][: len(ids)] == ids
        assert sum(padded["attention_mask"][i]) == len(ids)
        assert len(padded["input_ids"][i]) == len(padded["attention_mask"][i])
        assert [k for k in padded["labels"][i] if k != -100] == [k for k in plain["labels"][i] if k != -100]
        if state.reads:
            assert len(padded["input_ids"][i]) == 128


@pytest.mark.parametrize("family", ["t5"], indirect=True)
def test_padding_that_counts(folder: Path) -> None:
    state = state_of(folder, ignore_pad_token_for_loss=False)
    pad = imported(folder, TASK).tokenizer.pad_token_id
    columns = labelled(folder, state, rows(3))
    assert {len(labels) for labels in columns["labels"]} == {state.max_target_length}
    assert columns["labels"][0] == [1, *[pad] * 11]  # no answer: the end alone


WORDS = st.lists(st.sampled_from(["Ada", "wrote", "the", "report", "in 1843", "—", "Zürich,", "日本"]), max_size=120)


@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"], indirect=True)
@given(words=WORDS, stride=st.integers(0, 20))
def test_windows_hold_the_whole_context(folder: Path, words: list[str], stride: int) -> None:
    """Each fits, none is left out, and neighbours share about doc_stride tokens."""
    context = " ".join(words)
    tokenizer = imported(folder, TASK).tokenizer
    state = replace(state_of(folder, max_seq_length=80), doc_stride=stride)
    found = list(prompts._parts(row("Who?", context, "Ada"), tokenizer, state))
    reached = 0
    for text, ids in found:
        assert len(ids) <= state.room
        places = [at for at in range(len(context) + 1) if context.startswith(text, at)]
        reached = max(at + len(text) for at in places if not context[reached:at].strip())  # nothing is between windows
    assert not context[reached:].strip()
    if not stride:
        assert "".join(text for text, _ in found).replace(" ", "") == context.replace(" ", "")
    columns = prompts.encode([row("Who?", context, "Ada")], tokenizer, state)
    assert max(map(len, columns["input_ids"])) <= state.room


@pytest.mark.parametrize("family", ["t5", "gpt2"], indirect=True)
def test_windows_without_the_answer_learn_to_give_none(folder: Path) -> None:
    tokenizer = imported(folder, TASK).tokenizer
    state = state_of(folder, max_seq_length=70, doc_stride=8)
    filler = "The dog sees a cat in the garden. " * 10
    asked = row("Who wrote it?", f"{filler}Ada wrote the report. {filler}", "ada")
    in_other_words = row("Who wrote it?", filler, "nobody")
    columns = labelled(folder, state, [asked, in_other_words])
    given_: dict[int, list[str]] = {0: [], 1: []}
    for i, ids in zip(columns["row"], columns["target_ids"], strict=True):
        given_[i].append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    assert set(given_[0]) == {"ada", ""} and 1 <= given_[0].count("ada") <= 2
    assert set(given_[1]) == {"nobody"}


@pytest.mark.parametrize("family", ["t5", "gpt2"], indirect=True)
def test_what_can_not_be_learnt(folder: Path) -> None:
    tokenizer = imported(folder, TASK).tokenizer
    state = state_of(folder, max_seq_length=70, max_answer_length=6)
    long = "a very long answer in many words, is it not"
    asked = [row("Who? " * 60, "Ada.", "Ada"), row("Who?", "Ada.", long), row("?", "A.")]
    columns = prompts.encode(asked, tokenizer, state)
    _, lost = prompts.label(asked, columns, state)
    assert "the question is too long beside doc_stride" in lost[0].reason
    assert lost[1].reason == "its answer has more than max_answer_length 6 tokens"
    longest = columns["target_tokens"][0]
    assert lost[1].fix == f"--max_answer_length {longest}" and set(lost) == {0, 1}
    wider = state_of(folder, max_seq_length=70, max_answer_length=longest)
    assert set(prompts.label(asked, prompts.encode(asked, tokenizer, wider), wider)[1]) == {0}


def test_question_and_context_hold_no_places() -> None:
    template = "{question} of {context}?"
    assert prompts.filled(template, "{context}", "{question}") == "{context} of {question}?"


def test_templates_that_make_no_prompt(tmp_path: Path) -> None:
    build("t5", tmp_path)
    for template, lacking in (("{question}", "{context}"), ("x", "{question} and {context}"), ("", "{question} and")):
        with pytest.raises(ParameterError) as caught:
            state_of(tmp_path, prompt_template=template)
        assert lacking in caught.value.faults[0].why


def test_what_a_decoder_can_not_do(tmp_path: Path) -> None:
    build("gpt2", tmp_path)
    with pytest.raises(UnsupportedError, match="ignore_pad_token_for_loss false for a decoder"):
        state_of(tmp_path, ignore_pad_token_for_loss=False)
    with pytest.raises(ParameterError, match="max_answer_length 200 leaves no room in windows of 160 tokens"):
        state_of(tmp_path, max_answer_length=200)


def test_an_answer_stands_in_a_window_as_whole_words() -> None:
    assert prompts._wanted(["Go north.", "He said no."], "no") == ["", "no"]
    assert prompts._wanted(["Go north.", "He stayed."], "no") == ["no", "no"]  # in other words than the text's
    assert prompts._wanted(["\u8fd9\u662f\u5317\u4eac\u5e02", "\u4e0a\u6d77"], "\u5317\u4eac") == ["\u5317\u4eac", ""]
    assert prompts._wanted(["C++ (1985)", "C"], "c++") == ["c++", ""]
    assert prompts._wanted(["a", "b"], "") == ["", ""] and prompts._wanted(["a"], None) == [None]
