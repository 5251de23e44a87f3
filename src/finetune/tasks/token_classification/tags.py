"""Compute the loss, a tag for every word, entities and their metrics from the model's outputs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from finetune.core.types import Json
from finetune.data.batches import Batch
from finetune.data.table import Row
from finetune.tasks.task import Breakdown, Examined, Item, Prediction, Reduced
from finetune.tasks.token_classification.rows import spans, text_of
from finetune.tasks.token_classification.schemes import OUTSIDE, as_iobes, entities, type_of
from finetune.tasks.token_classification.windows import IGNORED, NO_WORD, State


def loss(outputs: ModelOutput, batch: Batch) -> torch.Tensor:
    """Return (B,): the cross-entropy of each window, summed over its words."""
    logits = outputs["logits"].float().transpose(1, 2)  # (B, C, L)
    return functional.cross_entropy(logits, batch["labels"], ignore_index=IGNORED, reduction="none").sum(1)


def items(batch: Batch) -> torch.Tensor:
    """Return (B,): how many words of each window have a label."""
    labelled: torch.Tensor = batch["labels"] != IGNORED
    return labelled.sum(1)


def reduce(outputs: ModelOutput, batch: Batch, _state: State) -> Reduced:
    """Return row (B,); word, class and score (B, L): the most probable class of each word and its probability."""
    score, best = outputs["logits"].float().softmax(-1).max(-1)
    return {"row": batch["row"], "word": batch["word"], "class": best, "score": score}


def compact(reduced: Reduced) -> Reduced:
    """Return row, word, class and score (W,), one entry for each word."""
    is_word = reduced["word"] != NO_WORD
    flat = {name: reduced[name][is_word] for name in ("word", "class", "score")}
    return {**reduced, **flat, "row": np.repeat(reduced["row"], is_word.sum(1))}


def decode(reduced: Reduced, rows: Sequence[Row], state: State) -> list[Prediction]:
    """Return one prediction for each row, with a tag for each word. Training, evaluation and serving all use it.

    A prediction is {tokens, tags, scores, spans, entities}: scores are probabilities, 0 for a word without a token,
    which gets `State.wordless`; spans are the characters of the words; an entity is {type, text, score, start, end,
    first, last}, its score the mean over its words first to last.
    """
    row_of = reduced.get("row", np.empty(0, dtype=np.int64))  # entry -> row
    order = np.argsort(row_of, kind="stable")
    bounds = np.searchsorted(row_of[order], np.arange(len(rows) + 1))
    return [_decode(reduced, order[bounds[i] : bounds[i + 1]], row, state) for i, row in enumerate(rows)]


def _decode(reduced: Reduced, entries: Any, row: Row, state: State) -> Prediction:
    tags, scores = [state.wordless] * len(row["tokens"]), [0.0] * len(row["tokens"])
    if len(entries):
        for word, best, score in zip(
            reduced["word"][entries].tolist(),
            reduced["class"][entries].tolist(),
            reduced["score"][entries].tolist(),
            strict=True,
        ):
            tags[word], scores[word] = state.labels[best], score
    text, placed = text_of(row), spans(row)
    found = [
        {
            "type": kind,
            "text": text[placed[first][0] : placed[last][1]],
            "score": sum(scores[first : last + 1]) / (last + 1 - first),
            "start": placed[first][0],
            "end": placed[last][1],
            "first": first,
            "last": last,
        }
        for kind, first, last in entities(tags, state.scheme)
    ]
    return {
        "tokens": row["tokens"],
        "tags": tags,
        "scores": scores,
        "spans": [list(span) for span in placed],
        "entities": found,
    }


def metrics(predictions: Sequence[Prediction], rows: Sequence[Row], state: State) -> dict[str, float]:
    """Return precision, recall, f1, accuracy, of entities by seqeval, or of tags that mark none (macro averages)."""
    from finetune.tasks.token_classification.metrics import Seqeval, Tagging

    predicted, gold = [p["tags"] for p in predictions], [row["tags"] for row in rows]
    if not state.scheme:
        result: dict[str, float] = Tagging().compute(predictions=predicted, references=gold)
        return result
    scores: dict[str, float] = Seqeval(config_name=state.scheme).compute(
        predictions=[as_iobes(tags, state.scheme) for tags in predicted],
        references=[as_iobes(tags, state.scheme) for tags in gold],
    )
    return scores


def breakdown(predictions: Sequence[Prediction], rows: Sequence[Row], state: State) -> Breakdown:
    """Return metrics of each type of entity, or each tag, and the types of words, O among them, against each other."""
    from finetune.tasks.token_classification.metrics import by_class

    confusion: dict[str, Counter[str]] = {}
    found: list[Item] = []
    gold: list[Item] = []
    for i, (prediction, row) in enumerate(zip(predictions, rows, strict=True)):
        for wanted, given in zip(row["tags"], prediction["tags"], strict=True):
            counts = confusion.setdefault(type_of(wanted, state.scheme), Counter())
            counts[type_of(given, state.scheme)] += 1
        found += [(kind, i, *place) for kind, *place in _items(prediction["tags"], state)]
        gold += [(kind, i, *place) for kind, *place in _items(row["tags"], state)]
    return Breakdown(by_class(found, gold), {name: dict(counts) for name, counts in sorted(confusion.items())})


def _items(tags: Sequence[str], state: State) -> list[Item]:
    """Return what is scored, its class first: entities, or the tag of each word."""
    return list(entities(tags, state.scheme)) if state.scheme else [(tag, i) for i, tag in enumerate(tags)]


def examine(prediction: Prediction, row: Row, state: State) -> Examined:
    """Return what the report shows; the score is the F1 of entities, or the share of words with the right tag.

    The confidence is what that score is expected to be: the mean score of the entities found, the lowest of all words
    where none is found; without entities the mean score of all words.
    """
    described = _entities_beside_gold(prediction, row, state) if state.scheme else _tags_beside_gold(prediction, row)
    if row["tags"] is None:
        described["score"] = None
    return Examined(
        id=row["id"], row=row["row"], length=len(row["tokens"]), group="", title="", text=text_of(row), **described
    )


def _entities_beside_gold(prediction: Prediction, row: Row, state: State) -> Json:
    text, placed, scores = text_of(row), prediction["spans"], prediction["scores"]
    sides = {
        "predicted": entities(prediction["tags"], state.scheme),
        "gold": entities(row["tags"] or [], state.scheme),
    }
    found, gold = sides.values()
    shown = {
        side: ", ".join(f"{e.type} {text[placed[e.first][0] : placed[e.last][1]]}" for e in some)
        for side, some in sides.items()
    }
    sure = [entity["score"] for entity in prediction["entities"]]
    return {
        "score": 200 * len({*found} & {*gold}) / (len(found) + len(gold)) if found or gold else 100.0,
        "confidence": sum(sure) / len(sure) if sure else min(scores, default=0.0),
        "marks": tuple((placed[e.first][0], placed[e.last][1], side) for side, some in sides.items() for e in some),
        "predicted": shown["predicted"],
        "gold": (shown["gold"],) if gold else (),
    }


def _tags_beside_gold(prediction: Prediction, row: Row) -> Json:
    tags, scores = prediction["tags"], prediction["scores"]
    gold = row["tags"] or tags
    wrong = [i for i, tag in enumerate(tags) if tag != gold[i]]
    shown = [", ".join(f"{row['tokens'][i]}/{some[i]}" for i in wrong) for some in (tags, gold)]
    return {
        "score": 100 * (1 - len(wrong) / len(tags)),
        "confidence": sum(scores) / len(scores),
        "marks": tuple((*prediction["spans"][i], "predicted") for i in wrong),
        "predicted": shown[0],
        "gold": (shown[1],) if wrong else (),
    }


def show(prediction: Prediction, row: Row) -> str:
    """Return the words, each entity in [[ ]] with its type; without entities, each word with its tag."""
    if not prediction["entities"] and all(tag == OUTSIDE for tag in prediction["tags"]):
        return text_of(row)
    if not prediction["entities"]:
        return " ".join(f"{word}/{tag}" for word, tag in zip(row["tokens"], prediction["tags"], strict=True))
    text, shown, end = text_of(row), "", 0
    for entity in prediction["entities"]:
        shown += f"{text[end : entity['start']]}[[{entity['text']} {entity['type']}]]"
        end = entity["end"]
    return shown + text[end:]


def present(prediction: Prediction) -> Json:
    """Return a record of the served model: words, tags, scores, spans, entities."""
    return {"words": prediction["tokens"], **{key: prediction[key] for key in ("tags", "scores", "spans", "entities")}}


def tied(prediction: Prediction, served: Json, _state: State, tolerance: float) -> bool:
    """Return whether all scores are alike, and other tags stand only where two can tie: two that do share 1."""
    if (prediction["tokens"], prediction["spans"]) != (served["words"], served["spans"]):
        return False
    words = zip(prediction["tags"], served["tags"], prediction["scores"], served["scores"], strict=True)
    return all(
        abs(score - other) <= tolerance and (tag == another or score <= 0.5 + tolerance)
        for tag, another, score, other in words
    )


def limits(state: State) -> list[str]:
    sentences = [
        f"It knows {len(state.labels)} tags: {', '.join(state.labels)}.",
        f"It reads {state.max_seq_length} tokens at a time; longer inputs in windows that share {state.doc_stride}.",
        f"A word that gives no token, such as an empty one, gets the tag {state.wordless} with score 0.",
        "It was trained on words cut as in its data; text given as a string is cut at white space and around signs, "
        "which may differ: give a list of words where that matters.",
    ]
    if state.scheme:
        sentences.append(f"Its tags follow {state.scheme}; each is predicted by itself, so a few may break the scheme.")
    return sentences
