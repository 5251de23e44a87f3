"""Tokenizers of several kinds, and rows and states to try them on."""

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
)

from finetune.params import QuestionAnsweringColumns
from finetune.tables import Audit, Row, Table
from finetune.tasks.question_answering import rows as qa_rows
from finetune.tasks.question_answering import windows as qa_windows

TEXTS = st.text(st.sampled_from("aábcdeABÉ 019.,-'한국漢字東仮🙂👩‍👧½ﬁñ\u0301\u0308\u200b\u2028\n\t  "), max_size=12)
PARAGRAPHS = st.lists(TEXTS, min_size=1, max_size=60).map(" ".join).filter(str.strip)
QUESTIONS = st.lists(TEXTS, min_size=1, max_size=5).map(" ".join).filter(str.strip)
TRAINED_ON = ["abcde ABE a\u0301 n\u0303 019 .,-' 한국 漢字 東 仮 🙂 👩 👧 1⁄2 fi"] * 3
WHOLE = 10_000  # longer than any context here: one window


@pytest.fixture(scope="module", params=["wordpiece", "byte_level"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two kinds that differ in what one character becomes: accents stripped, jamo and bytes as tokens of their own."""
    if request.param == "wordpiece":
        wordpiece = BertWordPieceTokenizer(lowercase=True)
        wordpiece.train_from_iterator(TRAINED_ON, vocab_size=200, min_frequency=1, show_progress=False)
        file = tmp_path_factory.mktemp("wordpiece") / "tokenizer.json"
        wordpiece.save(str(file))
        return BertTokenizerFast(tokenizer_file=str(file))
    names = ["<s>", "<pad>", "</s>"]
    byte_level = ByteLevelBPETokenizer()
    byte_level.train_from_iterator(["abcde abc"] * 3, vocab_size=270, special_tokens=names, show_progress=False)
    byte_level._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level._tokenizer, cls_token="<s>", pad_token="<pad>", sep_token="</s>"
    )


def state(**values: Any) -> qa_windows.State:
    defaults = {
        "max_seq_length": 64, "doc_stride": 8, "pad_to_max_length": False, "n_best_size": 5,
        "max_answer_length_in_tokens": 30, "no_answer": False,
    }  # fmt: skip
    return qa_windows.State(**{**defaults, **values})


def row(context: str, question: str = "a?", text: str | None = None, start: int = 0) -> Row:
    answers = {"text": [], "answer_start": []} if text is None else {"text": [text], "answer_start": [start]}
    return {"id": "1", "row": 1, "question": question, "context": context, "answers": answers}


def tiny_bert(vocab_size: int) -> BertForQuestionAnswering:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForQuestionAnswering(BertConfig(vocab_size=vocab_size, **sizes)).eval()


def state_whole(**values: Any) -> qa_windows.State:
    return state(max_seq_length=WHOLE, max_answer_length_in_tokens=WHOLE, **values)


def validated(*rows: Row, **columns: str) -> tuple[list[Row], Audit]:
    audit = Audit()
    names = tuple(dict.fromkeys(name for r in rows for name in r))
    table = Table("file.csv", names, list(rows), list(range(11, 11 + len(rows))))
    return qa_rows.validate(table, QuestionAnsweringColumns(**columns), audit), audit
