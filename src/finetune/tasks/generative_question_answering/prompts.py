"""Make prompts of a question and as much of its context as a window holds, and their targets.

An encoder-decoder reads the prompt and writes the answer. A decoder goes on with the prompt: its training windows are
prompt and answer in one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from finetune.core.errors import Fault, ModelError, ParameterError, UnsupportedError
from finetune.data.batches import Columns
from finetune.data.table import Row
from finetune.params.datapreprocess import GenerativeQuestionAnsweringPreprocessParams
from finetune.tasks.generation import framing, targets
from finetune.tasks.generation.objective import IGNORED
from finetune.tasks.generation.writing import WritingState
from finetune.tasks.generative_question_answering.rows import first_answers
from finetune.tasks.task import Imported, Lost, Rows
from finetune.tasks.windowing import fitting_stride, stride_lines, window_length

READ = "question: {question} context: {context}"  # as T5 was pretrained with SQuAD (Raffel et al. 2020, D.15)
CONTINUED = "Context: {context}\nQuestion: {question}\nAnswer:"
QUESTION, CONTEXT = "{question}", "{context}"


@dataclass(frozen=True, kw_only=True)
class State(WritingState):
    """The state that encoding and decoding need."""

    doc_stride: int
    prompt_template: str
    counted_padding: int | None  # the token that fills targets up where the loss counts it
    no_answer: bool  # training rows hold questions without an answer
    null_threshold: float = 0.0  # withhold the answer where no answer is more probable by more than this

    @property
    def room(self) -> int:
        """The tokens of a prompt: all that the window has, or all beside what a decoder writes behind it."""
        return self.max_seq_length - (0 if self.reads else self.max_target_length)

    @property
    def reads(self) -> bool:
        """Whether the prompt is read by an encoder; if not, a decoder goes on with it."""
        return self.decoder_start_token_id is not None


def fit(params: GenerativeQuestionAnsweringPreprocessParams, splits: Mapping[str, Rows], model: Imported) -> State:
    """Return the state of a run; doc_stride is lowered where a window could not hold it beside a question.

    Raises: ParameterError, UnsupportedError, ModelError.
    """
    config, tokenizer = model.config, model.tokenizer
    reads = bool(config.is_encoder_decoder)
    template = (READ if reads else CONTINUED) if params.prompt_template is None else params.prompt_template
    refuse_template(template)
    framing.set_one_language(tokenizer)
    if not reads:
        refuse_decoder(params, model)
    begins = framing.find_framing(config, tokenizer) if reads else None
    length = window_length(params.max_seq_length, model.longest_window)
    room = length - (0 if reads else params.max_answer_length) - len(_prompt_ids([template], tokenizer, reads)[0])
    return State(
        max_seq_length=length,
        pad_to_max_length=params.pad_to_max_length,
        max_target_length=params.max_answer_length,
        num_beams=params.num_beams,
        decoder_start_token_id=begins.start if begins else None,
        forced_bos_token_id=begins.forced if begins else None,
        doc_stride=fitting_stride(params.doc_stride, room),
        prompt_template=template,
        counted_padding=None if params.ignore_pad_token_for_loss else tokenizer.pad_token_id,
        no_answer=any(answer == "" for answer in first_answers(splits["train"])),
    )


def refuse_template(template: str) -> None:
    """Raise ParameterError unless the template has one place for the question, and one for the context."""
    missing = [place for place in (QUESTION, CONTEXT) if template.count(place) != 1]
    if missing:
        why = f"{' and '.join(missing)} must stand in it once"
        fix = f"--prompt_template '{READ}'"
        raise ParameterError(Fault(f"--prompt_template {template!r} makes no prompt", why=why, fix=fix))


def refuse_decoder(params: GenerativeQuestionAnsweringPreprocessParams, model: Imported) -> None:
    """Raise an error for what a decoder can't do, or lacks."""
    if not params.ignore_pad_token_for_loss:
        what, why = "--ignore_pad_token_for_loss false for a decoder", "its answers end, and nothing fills them up"
        raise UnsupportedError(Fault(what, why=why, fix="--ignore_pad_token_for_loss true"))
    if model.tokenizer.eos_token_id is None or model.config.to_dict().get("eos_token_id") is None:
        what = "it isn't known how an answer ends"
        why = "the tokenizer or config.json has no eos_token"
        raise ModelError(Fault(what, why=why, fix="give the files that came with the model"))
    length = window_length(params.max_seq_length, model.longest_window)
    if params.max_answer_length >= length:
        what = f"--max_answer_length {params.max_answer_length} leaves no room in windows of {length} tokens"
        why, fix = "a decoder's answer stands behind its prompt", "--max_answer_length 30, or longer windows"
        raise ParameterError(Fault(what, why=why, fix=fix))


def derived(
    params: GenerativeQuestionAnsweringPreprocessParams, state: State, _splits: Mapping[str, Rows]
) -> list[str]:
    """Return lines on what `fit` found or changed."""
    lines = stride_lines(params.doc_stride, state.doc_stride, state.max_seq_length)
    if params.prompt_template is None:
        lines.append(f"prompt_template: {state.prompt_template!r}")
    if state.no_answer:
        lines.append("questions without an answer: found in the training rows, so the model may withhold its answer")
    return lines


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, state: State) -> Columns:
    """Return windows of prompts.

    Columns: input_ids and attention_mask; prompt_tokens, how many of them are not padding; row (index into `rows`);
    target_ids, cut off at max_target_length, and target_tokens, how many there are without that. A window of a context
    that takes several has the answer as its target if the answer stands in it, or in none of them, and else no answer.
    A row whose question leaves no room for doc_stride tokens and one more has no window.
    """
    framing.set_one_language(tokenizer)
    prompts = [filled(state.prompt_template, row["question"], row["context"]) for row in rows]
    whole = _prompt_ids(prompts, tokenizer, state.reads)
    columns: Columns = {"input_ids": [], "row": []}
    answers: list[str | None] = []
    for i, (row, ids, answer) in enumerate(zip(rows, whole, first_answers(rows), strict=True)):
        if len(ids) <= state.room:
            windows, wanted = [ids], [answer]
        else:
            parts = list(_parts(row, tokenizer, state))
            windows, wanted = [ids for _, ids in parts], _wanted([text for text, _ in parts], answer)
        columns["input_ids"] += windows
        columns["row"] += [i] * len(windows)
        answers += wanted
    columns["prompt_tokens"] = [len(ids) for ids in columns["input_ids"]]
    columns["attention_mask"] = [[1] * length for length in columns["prompt_tokens"]]
    if state.reads:
        columns |= targets.encode(answers, tokenizer, state)
    else:
        columns |= _continuations(answers, tokenizer, state)
    return _padded(columns, tokenizer.pad_token_id, state) if state.pad_to_max_length else columns


def filled(template: str, question: str, context: str) -> str:
    """Return the prompt; what stands in question or context is no place to fill."""
    before, _, behind = template.partition(CONTEXT)
    return before.replace(QUESTION, question) + context + behind.replace(QUESTION, question)


def _prompt_ids(prompts: Sequence[str], tokenizer: PreTrainedTokenizerFast, ends: bool) -> list[list[int]]:
    """Return the tokens of each prompt, as the tokenizer frames them, but without an end where it goes on."""
    found: list[list[int]] = tokenizer(list(prompts))["input_ids"] if prompts else []
    return found if ends else [ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids for ids in found]


def _parts(row: Row, tokenizer: PreTrainedTokenizerFast, state: State) -> Iterator[tuple[str, list[int]]]:
    """Yield the text of the context that each window holds, and the tokens of its prompt.

    A prompt is made of text that was cut at tokens, not of tokens that were cut: so it is what the same model is given
    elsewhere for that text.
    """
    question, context = row["question"], row["context"]
    around = len(_prompt_ids([filled(state.prompt_template, question, "")], tokenizer, state.reads)[0])
    if around + state.doc_stride + 1 > state.room:
        return
    spans = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    cuts = [0, *(start for start, _ in spans[1:]), len(context)]  # some tokens cover no character, or half of one
    first = 0
    while first < len(spans):
        last = min(len(spans), first + state.room - around)
        while True:
            text = context[cuts[first] : cuts[last]].strip()
            ids = _prompt_ids([filled(state.prompt_template, question, text)], tokenizer, state.reads)[0]
            if len(ids) <= state.room or last - first <= 1:
                break
            last = max(first + 1, last - (len(ids) - state.room))  # a cut text may take more tokens than the whole
        yield text, ids
        if last == len(spans):
            return
        first = max(first + 1, last - state.doc_stride)


def _wanted(texts: Sequence[str], answer: str | None) -> list[str | None]:
    """Return what is to be written for each window of a row."""
    if not answer:
        return [answer] * len(texts)
    whole = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)", re.IGNORECASE)  # "no" doesn't stand in "north"
    holds = [bool(whole.search(text)) for text in texts]
    if not any(holds):  # scripts without spaces have no whole words
        holds = [not answer.isascii() and answer.casefold() in text.casefold() for text in texts]
    return [answer if held or not any(holds) else "" for held in holds]


def _continuations(answers: Sequence[str | None], tokenizer: PreTrainedTokenizerFast, state: State) -> Columns:
    """Return target_ids and target_tokens of answers behind a prompt, their end among them.

    They are the tokens that an answer has behind the end of the template: SentencePiece would put a space before one
    that stands alone.
    """
    last = re.split(r"\{question\}|\{context\}", state.prompt_template)[-1] or ":"
    space = "" if last[-1].isspace() else " "
    texts = [last, *(f"{last}{space}{answer}" if answer else last for answer in answers)]
    (before, *behind) = tokenizer(texts, add_special_tokens=False)["input_ids"]
    found = []
    for answer, ids in zip(answers, behind, strict=True):
        is_behind = ids[: len(before)] == before
        own = ids[len(before) :] if is_behind else tokenizer(str(answer), add_special_tokens=False)["input_ids"]
        found.append([] if answer is None else [*own, tokenizer.eos_token_id])
    return {
        "target_ids": [ids[: state.max_target_length] for ids in found],
        "target_tokens": [len(ids) for ids in found],
    }


def _padded(columns: Columns, pad: int, state: State) -> Columns:
    fills = {"input_ids": pad, "attention_mask": 0}
    filled_up = {
        name: [[*ids, *[fill] * (state.room - len(ids))] for ids in columns[name]] for name, fill in fills.items()
    }
    return columns | filled_up


def label(rows: Sequence[Row], windows: Columns, state: State) -> tuple[Columns, dict[int, Lost]]:
    """Return labels, and the rows that can't be learnt from.

    For a decoder, input_ids and attention_mask are those of prompt and answer in one, and the labels stand one place
    before their tokens, where these are predicted.
    """
    if not state.reads:
        return _continued(windows, state), _lost(rows, windows, state)
    if state.counted_padding is not None:
        fill, most = state.counted_padding, state.max_target_length
        full = [[*ids, *[fill] * (most - len(ids))] if ids else ids for ids in windows.get("target_ids", [])]
        windows = {**windows, "target_ids": full}
    return targets.label(windows, state), _lost(rows, windows, state)


def _continued(windows: Columns, state: State) -> Columns:
    labelled: Columns = {"input_ids": [], "attention_mask": [], "labels": []}
    columns = (windows.get(name, []) for name in ("input_ids", "prompt_tokens", "target_ids"))
    for ids, length, target in zip(*columns, strict=True):
        behind = ids[length:]  # padding, if there is any
        labelled["input_ids"].append([*ids[:length], *target, *behind])
        labelled["attention_mask"].append([1] * (length + len(target)) + [0] * len(behind))
        labelled["labels"].append([*[IGNORED] * (length - 1), *target, *[IGNORED] * (len(behind) + 1)])
    return labelled


def unanswerable(rows: Sequence[Row], windows: Columns, state: State) -> dict[int, str]:
    """Return the rows whose prediction is empty, or can't be as long as their answer."""
    return {row: lost.reason for row, lost in _lost(rows, windows, state).items()}


def _lost(rows: Sequence[Row], windows: Columns, state: State) -> dict[int, Lost]:
    stride, windowed = state.doc_stride, set(windows.get("row", []))
    long = Lost(
        f"the question is too long beside doc_stride {stride} tokens of context in a window of {state.room} tokens",
        f"--doc_stride below {stride}" if stride else "shorter questions",
    )
    most = state.max_target_length
    longest = max(windows.get("target_tokens", []), default=0)
    cut = Lost(f"its answer has more than max_answer_length {most} tokens", f"--max_answer_length {longest}")
    longer = zip(windows.get("row", []), windows.get("target_tokens", []), strict=True)
    found = {row: cut for row, length in longer if length > most}
    return found | {row: long for row in range(len(rows)) if row not in windowed}


def beyond(lengths: Sequence[int], state: State) -> list[str]:
    """Return a line on the answers that can't be written."""
    return targets.beyond(lengths, state.max_target_length, "answers", "max_answer_length")


def adopt(state: State, _config: PreTrainedConfig) -> State:
    """Return the state: a config knows nothing better of it than what `fit` has read there."""
    return state
