"""Predictions of translation: decoded, scored, shown and served."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerFast

from finetune.core.types import Json
from finetune.data.table import Row
from finetune.tasks.generation import writing
from finetune.tasks.task import Breakdown, Examined, Prediction, Reduced
from finetune.tasks.translation import metrics as measures
from finetune.tasks.translation.pairs import State

NONE: Prediction = {"text": "", "score": 0.0, "margin": 0.0, "tokens": 0}


def decode(
    reduced: Reduced, rows: Sequence[Row], _state: State, tokenizer: PreTrainedTokenizerFast
) -> list[Prediction]:
    """Return one prediction for each row: {text, score, margin, tokens}.

    The score is the geometric mean of the probabilities of its tokens, the margin that of `generation.writing`.
    """
    found = [NONE] * len(rows)
    if not reduced:
        return found
    columns = zip(
        reduced["row"],
        reduced["tokens"],
        writing.texts(reduced, tokenizer),
        reduced["score"],
        reduced["margin"],
        strict=True,
    )
    for row, tokens, text, score, margin in columns:
        found[int(row)] = {
            "text": text,
            "score": math.exp(min(0.0, float(score))),
            "margin": float(margin) if math.isfinite(margin) else 0.0,
            "tokens": len(tokens),
        }
    return found


def needed(prediction: Prediction) -> Prediction:
    """Return what the metrics read of a prediction."""
    return {"text": prediction["text"], "tokens": prediction["tokens"]}


def metrics(predictions: Sequence[Prediction], rows: Sequence[Row], state: State) -> dict[str, float]:
    """Return bleu and chrf, gen_len (the mean tokens of a translation), and how many are off target, and how."""
    texts, gold = [p["text"] for p in predictions], [row["target"] for row in rows]
    wrong = Counter(
        what
        for text, row in zip(texts, rows, strict=True)
        for what in measures.off_target(text, row["source"], row["target"])
    )
    return {
        **measures.corpus(texts, gold, state.target_lang),
        "gen_len": sum(p["tokens"] for p in predictions) / len(predictions),
        **{name: wrong[name] for name in measures.OFF_TARGET},
    }


def costly(predictions: Sequence[Prediction], rows: Sequence[Row], _state: State) -> dict[str, float]:
    """Return ter."""
    return measures.edits([p["text"] for p in predictions], [row["target"] for row in rows])


def published(predictions: Sequence[Prediction], rows: Sequence[Row], state: State, _options: Json) -> dict[str, float]:
    """Return bleu_1 to bleu_4, as Azure's published component has them."""
    return measures.published([p["text"] for p in predictions], [row["target"] for row in rows], state.target_lang)


def breakdown(predictions: Sequence[Prediction], rows: Sequence[Row], state: State) -> Breakdown:
    """Return the metrics by the words of the source."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(_length(len(row["source"].split())), []).append(i)
    found = {}
    for name in sorted(groups, key=lambda name: int(name.split()[0])):
        chosen = groups[name]
        texts, gold = [predictions[i]["text"] for i in chosen], [rows[i]["target"] for i in chosen]
        scores = measures.corpus(texts, gold, state.target_lang) | measures.edits(texts, gold)
        found[name] = {**scores, "support": len(chosen)}
    return Breakdown(classes=found)


def _length(words: int) -> str:
    least = 0
    for most in measures.LENGTHS:
        if words <= most:
            return f"{least + 1 if least else 1} to {most} words"
        least = most
    return f"{least + 1} words and more"


def examine(prediction: Prediction, row: Row, _state: State) -> Examined:
    """Return the translation above its gold, with the words marked that only one of them has, and its chrF."""
    gold, text = row["target"], prediction["text"]
    both = f"{text}\n{gold}" if gold is not None else text
    return Examined(
        id=row["id"],
        row=row["row"],
        score=None if gold is None else measures.sentence(text, gold),
        confidence=prediction["score"],
        length=len(row["source"].split()),
        group="",
        title=row["source"],
        text=both,
        marks=() if gold is None else tuple(_differences(text, gold)),
        predicted=text,
        gold=() if gold is None else (gold,),
    )


def _differences(text: str, gold: str) -> Iterator[tuple[int, int, str]]:
    """Yield the words of the translation that its gold lacks, and those of the gold, in `text NEWLINE gold`."""
    one, other = (list(re.finditer(r"\S+", side)) for side in (text, gold))
    matcher = difflib.SequenceMatcher(None, [m[0] for m in one], [m[0] for m in other], autojunk=False)
    for kind, low, high, first, last in matcher.get_opcodes():
        if kind == "equal":
            continue
        if high > low:
            yield one[low].start(), one[high - 1].end(), "predicted"
        if last > first:
            yield len(text) + 1 + other[first].start(), len(text) + 1 + other[last - 1].end(), "gold"


def show(prediction: Prediction, row: Row) -> str:
    """Return a pair for a terminal."""
    return f"{row['source']}\n  -> {prediction['text']}"


def present(prediction: Prediction) -> Json:
    return {"translation": prediction["text"], "score": prediction["score"]}


def tied(prediction: Prediction, answer: Json, _state: State, tolerance: float) -> bool:
    """Return whether rounding may have chosen another token somewhere: then all behind it may differ."""
    return bool(prediction["margin"] <= tolerance)


def limits(state: State) -> list[str]:
    """Return what the model can't do."""
    return [
        f"It was trained to translate from {state.source_lang} to {state.target_lang}; other languages that it may "
        "know were not measured.",
        f"A text is read up to {state.max_seq_length} tokens, and a translation has at most {state.max_target_length}: "
        "give it sentences, not documents.",
        "What is written is not checked against anything: names, numbers and negations may be wrong.",
    ]


def usage(state: State) -> str:
    """Return how to translate with transformers alone."""
    lines = [
        f'tokenizer.src_lang = "{state.source_lang}"'
        if state.forced_bos_token_id is not None and not state.prefix
        else "",
        f'inputs = tokenizer("{state.prefix}The report was written in 1843.", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))",
        "",
    ]
    return "\n".join(line for i, line in enumerate(lines) if line or i == len(lines) - 1)
