"""The parameters of preprocess: files, columns, and how rows are encoded."""

from dataclasses import dataclass
from pathlib import Path

from finetune.params.schema import param, port, required

PREPROCESSED = ("preprocess.json", "preprocess.part", "train/", "validation/", "test/", "tokenizer/")


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """Data."""

    train_file_path: Path | None = port(
        "uri_file",
        "Training rows: jsonl, json, csv, tsv, parquet, or CoNLL columns as conll, conllu, bio, iob or txt; each also .gz.",
        optional=True,
    )
    validation_file_path: Path | None = port(
        "uri_file",
        "Validation rows. Where validation and test are both missing, training rows are split 80/10/10; where one is missing, it gets 20% of them.",
        optional=True,
    )
    test_file_path: Path | None = port("uri_file", "Test rows.", optional=True)
    train_mltable_path: Path | None = port(
        "mltable", "Training rows as an MLTable folder. Wins over train_file_path.", optional=True
    )
    validation_mltable_path: Path | None = port(
        "mltable", "Validation rows as an MLTable folder. Wins over validation_file_path.", optional=True
    )
    test_mltable_path: Path | None = port(
        "mltable", "Test rows as an MLTable folder. Wins over test_file_path.", optional=True
    )
    dataset_name: str | None = param(
        None,
        "A data set of the Hugging Face hub, or a local folder that datasets can load. Used where no training file is given.",
    )
    dataset_config_name: str | None = param(None, "The configuration of dataset_name.")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Encoding."""

    batch_size: int = param(1000, "Rows tokenized at a time; fewer where they are long.", min=1)
    max_seq_length: int = param(-1, "Tokens in one window. -1 means the model's true maximum.", min=-1)
    pad_to_max_length: bool = param(
        False, "Pad every window to max_seq_length. false pads each batch to its longest window, which is much faster."
    )
    max_train_samples: int = param(-1, "Use this many training rows. -1 means all.", min=-1)
    max_eval_samples: int = param(-1, "Use this many rows of validation and of test. -1 means all.", min=-1)
    max_dropped_fraction: float = param(
        0.1, "End with an error if a larger share of the rows of a split has to be dropped.", min=0, max=1
    )


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringColumns:
    """Columns."""

    question_key: str = param("question", "Column of the question.")
    context_key: str = param("context", "Column of the text that holds the answer.")
    answers_key: str = param("answers", "Column of the answers: an object, the same as JSON text, or plain text.")
    answer_start_key: str = param("answer_start", "Key inside the answers for the character offsets.")
    answer_text_key: str = param("text", "Key inside the answers for the texts.")


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringDecoding:
    """Windows and decoding."""

    doc_stride: int = param(128, "Tokens that two neighbouring windows of a long context share.", min=0)
    n_best_size: int = param(20, "Spans kept for each question.", min=1)
    max_answer_length_in_tokens: int = param(30, "Longest answer that is predicted, in tokens.", min=1)


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringPreprocessParams(QuestionAnsweringColumns, QuestionAnsweringDecoding, DataFiles, Encoding):
    """Folders."""

    model_selector_output: Path = port("uri_folder", "Output of model import.")
    output_dir: Path = port(
        "uri_folder", "Encoded splits, their rows, the tokenizer and preprocess.json.", output=True, writes=PREPROCESSED
    )


@dataclass(frozen=True, kw_only=True)
class GenerativeQuestionAnsweringDecoding:
    """Windows and decoding."""

    doc_stride: int = param(128, "Tokens that two neighbouring windows of a long context share.", min=0)
    max_answer_length: int = param(30, "Longest answer that is written, in tokens.", min=2)
    num_beams: int = param(1, "Beams that answers are searched with. 1 takes the best token at each step.", min=1)
    prompt_template: str | None = param(
        None,
        "Text that the model is given, with {question} and {context}. Left out, 'question: {question} context: {context}', as T5 was pretrained, and for decoders three lines that end in 'Answer:'.",
    )
    ignore_pad_token_for_loss: bool = param(
        True,
        "false fills the answers of an encoder-decoder up to max_answer_length with padding that counts in the loss.",
    )


@dataclass(frozen=True, kw_only=True)
class GenerativeQuestionAnsweringPreprocessParams(
    QuestionAnsweringColumns, GenerativeQuestionAnsweringDecoding, DataFiles, Encoding
):
    """Folders."""

    model_selector_output: Path = port("uri_folder", "Output of model import.")
    output_dir: Path = port(
        "uri_folder", "Encoded splits, their rows, the tokenizer and preprocess.json.", output=True, writes=PREPROCESSED
    )


@dataclass(frozen=True, kw_only=True)
class TokenClassificationColumns:
    """Columns."""

    token_key: str = param("tokens", "Column of the words: a list, or the same as JSON or Python text.")
    tag_key: str = param("ner_tags", "Column of the tags, one for each word: a list, or the same as text.")
    text_key: str = param("text", "Column of texts, where there are spans of characters in place of words and tags.")
    spans_key: str | None = param(
        None,
        "Column of spans, as doccano, Label Studio, Prodigy and spaCy write them. Left out, it is the one of label, labels, entities, spans, ents and annotations that holds spans, where there is no column of words.",
    )


@dataclass(frozen=True, kw_only=True)
class TokenClassificationDecoding:
    """Windows."""

    doc_stride: int = param(64, "Tokens that two neighbouring windows of a long row share.", min=0)


@dataclass(frozen=True, kw_only=True)
class TokenClassificationPreprocessParams(TokenClassificationColumns, TokenClassificationDecoding, DataFiles, Encoding):
    """Folders."""

    model_selector_output: Path = port("uri_folder", "Output of model import.")
    output_dir: Path = port(
        "uri_folder", "Encoded splits, their rows, the tokenizer and preprocess.json.", output=True, writes=PREPROCESSED
    )


@dataclass(frozen=True, kw_only=True)
class TranslationColumns:
    """Columns."""

    source_lang: str = required("Language to translate from: its code, and the column of its texts.")
    target_lang: str = required("Language to translate to: its code, and the column of its texts.")
    source_key: str | None = param(None, "Column of the source texts, where it is not called as source_lang.")
    target_key: str | None = param(None, "Column of the target texts, where it is not called as target_lang.")


@dataclass(frozen=True, kw_only=True)
class TranslationDecoding:
    """Decoding."""

    max_target_length: int = param(-1, "Tokens in a translation, at most. -1 means the model's true maximum.", min=-1)
    num_beams: int = param(1, "Beams that translations are searched with. 1 takes the best token at each step.", min=1)
    source_prefix: str | None = param(
        None,
        "Text before each source. Left out, what the model expects: 'translate English to German: ' for T5, nothing for most.",
    )


@dataclass(frozen=True, kw_only=True)
class TranslationPreprocessParams(TranslationColumns, TranslationDecoding, DataFiles, Encoding):
    """Folders."""

    model_selector_output: Path = port("uri_folder", "Output of model import.")
    output_dir: Path = port(
        "uri_folder", "Encoded splits, their rows, the tokenizer and preprocess.json.", output=True, writes=PREPROCESSED
    )
