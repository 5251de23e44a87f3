"""What is written is what plain transformers writes, and its scores are those of its tokens."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.data.batches import as_windows, collate
from finetune.models.loading import load_model
from finetune.models.prediction import predict_rows
from finetune.models.stored.tokenizers import imported
from finetune.tasks.generation import targets
from finetune.tasks.generation.writing import NOTHING
from finetune.tasks.generative_question_answering import TASK, answers, prompts
from tests.tasks.generative_question_answering.conftest import row, rows, state_of


@pytest.mark.parametrize("beams", [1, 3])
def test_it_writes_as_stock_generate(folder: Path, beams: int) -> None:
    """Rows of a batch, which are of different lengths, as `model.generate` writes each of them alone."""
    state = state_of(folder, num_beams=beams)
    model, _ = load_model(folder, TASK, state)
    tokenizer = imported(folder, TASK).tokenizer
    columns = prompts.encode(rows(5), tokenizer, state)
    batch = collate(as_windows(columns), targets.padding(tokenizer))
    with torch.no_grad():
        reduced = TASK.answer(model.eval(), batch, state)
        forced = int(state.forced_bos_token_id is not None)
        for ids, tokens in zip(columns["input_ids"], reduced["tokens"], strict=True):
            alone = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            stock: Any = model.generate(**alone, min_new_tokens=1 + forced)[0]
            written = stock[1 if state.reads else len(ids) :]
            kept = tokens[tokens != NOTHING]
            assert kept.tolist() == written[: len(kept)].tolist()
            assert len(kept) == len(written) or int(kept[-1]) == model.generation_config.eos_token_id


def test_scores_by_hand(folder: Path) -> None:
    state = state_of(folder)
    model, _ = load_model(folder, TASK, state)
    tokenizer = imported(folder, TASK).tokenizer
    columns = prompts.encode(rows(3), tokenizer, state)
    batch = collate(as_windows(columns), targets.padding(tokenizer))
    end, first = model.config.eos_token_id, int(state.forced_bos_token_id is not None)
    with torch.no_grad():
        reduced = TASK.answer(model.eval(), batch, state)
        for i, ids in enumerate(columns["input_ids"]):
            tokens = reduced["tokens"][i][reduced["tokens"][i] != NOTHING]
            prompt = torch.tensor([ids])
            if state.reads:
                start = torch.tensor([[state.decoder_start_token_id]])
                logits = model(input_ids=prompt, decoder_input_ids=torch.cat([start, tokens[None, :-1]], 1)).logits[0]
            else:
                logits = model(input_ids=torch.cat([prompt, tokens[None]], 1)).logits[0, len(ids) - 1 : -1]
            each = logits.log_softmax(1)
            chosen = each[range(len(tokens)), tokens][first:]
            assert float(reduced["log_probability"][i]) == pytest.approx(float(chosen.sum()), abs=1e-4)
            assert float(reduced["empty"][i]) == pytest.approx(float(each[first, end]), abs=1e-4)
            others = logits.clone()
            others[range(len(tokens)), tokens] = -torch.inf
            others[first, end] = -torch.inf
            margin = (logits[range(len(tokens)), tokens] - others.amax(1))[first:].min()
            assert float(reduced["margin"][i]) == pytest.approx(float(margin), abs=1e-4)


def test_rows_come_back_in_their_order(folder: Path) -> None:
    """Of several windows each, in batches of three; each is answered as if it were alone."""
    state = state_of(folder, max_seq_length=75, doc_stride=8)
    model, _ = load_model(folder, TASK, state)
    tokenizer = imported(folder, TASK).tokenizer
    together = predict_rows(model, tokenizer, rows(7), TASK, state, batch_size=3)
    alone = [predict_rows(model, tokenizer, [one], TASK, state, batch_size=1)[0] for one in rows(7)]
    assert [p["span_text"] for p in together] == [p["span_text"] for p in alone]
    assert [p["null_score"] for p in together] == pytest.approx([p["null_score"] for p in alone], abs=1e-4)


class Words:
    """A tokenizer whose tokens are words."""

    def batch_decode(self, ids: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(["", "Ada", "Bob", "Eve"][i] for i in one) for one in ids]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> prompts.State:
    from tests.writers import build_writer

    return state_of(build_writer("t5", tmp_path_factory.mktemp("t5")))


def reduced(*windows: tuple[int, int, float, float]) -> dict[str, Any]:
    """(row, word, log-probability, that of no answer) of each window."""
    tokens = np.empty(len(windows), dtype=object)
    tokens[:] = [np.array([word]) for _, word, *_ in windows]
    names = ("row", "word", "log_probability", "empty")
    columns = {name: np.array([window[i] for window in windows]) for i, name in enumerate(names)}
    return {**columns, "tokens": tokens, "margin": np.full(len(windows), 5.0), "score": columns["log_probability"]}


def decoded(state: prompts.State, *windows: tuple[int, int, float, float], count: int = 1) -> list[Any]:
    tokenizer: Any = Words()
    return answers.decode(reduced(*windows), [row("Who?", "Ada.")] * count, state, tokenizer)


def test_the_most_probable_answer_of_all_windows(state: prompts.State) -> None:
    """Not that of the last window; what has no text is no answer."""
    windows = [(0, 1, -3.0, -1.0), (0, 2, -1.0, -4.0), (0, 3, -2.0, -0.5), (0, 0, -0.1, -9.0), (2, 1, -1.0, -2.0)]
    found = decoded(state, *windows, count=3)
    assert [p["text"] for p in found] == ["Bob", "", "Ada"]
    assert found[0]["null_score"] == -9.0 + 1.0 and found[0]["margin"] == 1.0 and found[2]["margin"] == 5.0
    assert found[0]["score"] == pytest.approx(math.exp(-1.0)) and found[1] == answers.NONE


def test_an_answer_is_withheld_above_the_threshold(state: prompts.State) -> None:
    assert state.no_answer
    window = (0, 1, -3.0, -1.0)  # no answer beats it by 2
    for threshold, text in ((1.9, ""), (2.1, "Ada")):
        found = decoded(replace(state, null_threshold=threshold), window)[0]
        assert (found["text"], found["span_text"], found["null_score"]) == (text, "Ada", 2.0)
        assert found["score"] == pytest.approx(math.exp(-1.0 if not text else -3.0))
    assert decoded(replace(state, no_answer=False), window)[0]["text"] == "Ada"


def test_the_threshold_is_that_of_the_best_f1(state: prompts.State) -> None:
    """Withheld above the middle between what should be answered and what should not."""
    asked = [row("Who?", "Ada.", "Ada"), row("Who?", "Ada.", "Ada"), row("Who?", "Ada.")]
    windows = [(0, 1, -1.0, -9.0), (1, 1, -2.0, -1.0), (2, 1, -3.0, 0.0)]  # by -8, 1 and 3
    predictions = decoded(state, *windows, count=3)
    metrics = answers.metrics(predictions, asked, state)
    assert metrics["f1"] == pytest.approx(200 / 3) and metrics["best_f1"] == 100.0 and metrics["gen_len"] == 1.0
    calibrated = answers.calibrate(metrics, state)
    assert calibrated.null_threshold == 2.0
    assert answers.metrics(decoded(calibrated, *windows, count=3), asked, calibrated)["f1"] == 100.0


def test_ties(state: prompts.State) -> None:
    far, near = decoded(state, (0, 1, -1.0, -9.0))[0], decoded(state, (0, 1, -1.0, -1.0005))[0]
    windows = decoded(state, (0, 1, -1.0, -9.0), (0, 2, -1.0005, -9.0))[0]
    assert [answers.tied(p, {}, state, 1e-3) for p in (far, near, windows)] == [False, True, True]
    assert not answers.tied(near, {}, replace(state, no_answer=False), 1e-3)


def test_what_is_shown(state: prompts.State) -> None:
    asked = row("Who?", "It was Ada, said Bob.", "Bob")
    shown = answers.examine(decoded(state, (0, 1, -1.0, -9.0))[0], asked, state)
    assert shown.marks == ((7, 10, "predicted"), (17, 20, "gold"))
    assert (shown.score, shown.group, shown.predicted, shown.gold) == (0.0, "HasAns", "Ada", ("Bob",))
    unasked = {**asked, "answers": None}
    assert answers.examine(dict(answers.NONE), unasked, state).score is None
    assert answers.show(dict(answers.NONE), asked) == "Q: Who?\nA: (no answer)"
