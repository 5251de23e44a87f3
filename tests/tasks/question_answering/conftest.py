"""Tokenizers of several kinds, and rows and states to try them on."""

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertTokenizerFast,
    LlamaTokenizerFast,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizerFast,
)

from finetune.data.batches import as_windows, collate
from finetune.data.table import Audit, Row, Table
from finetune.params.datapreprocess import QuestionAnsweringColumns
from finetune.tasks.question_answering import rows as qa_rows
from finetune.tasks.question_answering import windows as qa_windows
from finetune.tasks.task import Columns

TEXTS = st.text(
    st.sampled_from("aábcdeABÉ 019.,-'한국漢字東仮🙂👩‍👧½ﬁñשלع\u0301\u0308\u200b\u2028\ufeff\u3000\r\n\t  "),
    max_size=12,
)
PARAGRAPHS = st.lists(TEXTS, min_size=1, max_size=60).map(" ".join).filter(str.strip)
QUESTIONS = st.lists(TEXTS, min_size=1, max_size=5).map(" ".join).filter(str.strip)
TRAINED_ON = ["abcde ABE a\u0301 n\u0303 019 .,-' 한국 漢字 東 仮 🙂 👩 👧 1⁄2 fi", "abc bcd  cde fib ab"] * 3
WHOLE = 10_000  # longer than any context here: one window


def wordpiece(folder: Path) -> Any:
    """As BERT's: accents stripped, Chinese characters one by one, unknown words one token."""
    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(TRAINED_ON, vocab_size=200, min_frequency=1, show_progress=False)
    made.save(str(folder / "tokenizer.json"))
    return BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def byte_level(folder: Path) -> Any:
    """As RoBERTa's: bytes as tokens of their own, the space before a word part of it."""
    names = ["<s>", "<pad>", "</s>"]
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(["abcde abc"] * 3, vocab_size=270, special_tokens=names, show_progress=False)
    made._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, cls_token="<s>", pad_token="<pad>", sep_token="</s>"
    )


def bpe(folder: Path) -> Any:
    """As Llama's: nothing normalized, runs of spaces kept, unknown characters as bytes, no token for a class."""
    options = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    train_sentencepiece(folder / "tokenizer.model", model_type="bpe", vocab_size=360, **options)
    return LlamaTokenizerFast.from_pretrained(folder, add_bos_token=True, pad_token="</s>")


def unigram(folder: Path) -> Any:
    """As XLM-R's: NFKC (ﬁ is two letters, ½ three signs, a letter and its accent one), white space dropped."""
    train_sentencepiece(folder / "sentencepiece.bpe.model", model_type="unigram", vocab_size=70)
    return XLMRobertaTokenizerFast.from_pretrained(folder)


def train_sentencepiece(file: Path, **options: Any) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINED_ON), model_writer=model, hard_vocab_limit=False, minloglevel=2, **options
    )
    file.write_bytes(model.getvalue())


@pytest.fixture(scope="module", params=[wordpiece, byte_level, bpe, unigram], ids=lambda kind: kind.__name__)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Kinds that differ in what one character becomes."""
    return request.param(tmp_path_factory.mktemp(request.param.__name__))


def state(**values: Any) -> qa_windows.State:
    defaults = {
        "max_seq_length": 64, "doc_stride": 8, "pad_to_max_length": False, "n_best_size": 5,
        "max_answer_length_in_tokens": 30, "no_answer": False,
    }  # fmt: skip
    return qa_windows.State(**{**defaults, **values})


def row(context: str, question: str = "a?", text: str | None = None, start: int = 0) -> Row:
    answers = {"text": [], "answer_start": []} if text is None else {"text": [text], "answer_start": [start]}
    return {"id": "1", "row": 1, "question": question, "context": context, "answers": answers}


def peaked(columns: Columns, labels: Columns, window: int) -> tuple[Any, Any]:
    """Outputs and batch of one window in which the model is sure of the labelled span."""
    length = len(columns["input_ids"][window])
    start, end = torch.zeros(1, length), torch.zeros(1, length)
    start[0, labels["start_positions"][window]] = end[0, labels["end_positions"][window]] = 50.0
    batch = collate([as_windows(columns)[window]], {})
    return {"start_logits": start, "end_logits": end}, batch


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


def context_tokens(columns: Columns, window: int) -> list[tuple[int, int]]:
    """(first, after) characters of the window's context tokens."""
    pairs = zip(columns["offset_start"][window], columns["token_end"][window], strict=True)
    return [(int(start), int(end)) for start, end in pairs if start != qa_windows.NO_SPAN]


def characters(tokens: list[tuple[int, int]]) -> set[int]:
    """The characters that tokens cover; white space and lone accents may be in none."""
    return {c for start, end in tokens for c in range(start, end)}
