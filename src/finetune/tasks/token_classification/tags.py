"""Read a tag for every word and entities off the model's outputs, and compute their metrics."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from finetune.core.types import Json
from finetune.data.table import Row
from finetune.tasks.task import Breakdown, Examined, Item, Prediction, Reduced
from finetune.tasks.token_classification.rows import places_of, text_of
from finetune.tasks.token_classification.schemes import OUTSIDE, as_iobes, entities, type_of
from finetune.tasks.token_classification.windows import NO_WORD, State, gold

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.tasks.task import Array


def reduce(outputs: Mapping[str, "Array"], batch: Mapping[str, "Array"], _state: State) -> Reduced:
    """Return row (B,); word, class and score (B, L), arrays or tensors: the most probable class of each word and its
    probability."""
    xp = array_namespace(batch["word"])
    logits = xp.astype(outputs["logits"], xp.float32)  # (B, L, C)
    below = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    score = 1 / xp.sum(below, axis=-1)
    return {"row": batch["row"], "word": batch["word"], "class": xp.argmax(logits, axis=-1), "score": score}


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


def _decode(reduced: Reduced, entries: "NDArray[np.int64]", row: Row, state: State) -> Prediction:
    tags, scores = [state.wordless] * len(row["tokens"]), [0.0] * len(row["tokens"])
    if len(entries):
        for word, best, score in zip(
            reduced["word"][entries].tolist(),
            reduced["class"][entries].tolist(),
            reduced["score"][entries].tolist(),
            strict=True,
        ):
            tags[word], scores[word] = state.labels[best], score
    text, placed = text_of(row), places_of(row)
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


class Compared(NamedTuple):
    """The annotated words of a row: their places, and their tags on both sides."""

    words: list[int]
    predicted: list[str]
    gold: list[str]


def compared(prediction: Prediction, row: Row, state: State) -> Compared:
    """Return the annotated words of a row; words that aren't are left out of both sides."""
    wanted = gold(row, state)
    words = [i for i, tag in enumerate(wanted) if tag is not None]
    return Compared(words, [prediction["tags"][i] for i in words], [tag for tag in wanted if tag is not None])


def metrics(predictions: Sequence[Prediction], rows: Sequence[Row], state: State) -> dict[str, float]:
    """Return precision, recall, f1, accuracy, of entities by seqeval, or of tags that mark none (macro averages)."""
    from finetune.tasks.token_classification.metrics import Seqeval, Tagging

    predicted, wanted = _both_sides(predictions, rows, state)
    metric = Seqeval(config_name=state.scheme) if state.scheme else Tagging()
    result: dict[str, float] = metric.compute(predictions=predicted, references=wanted)
    return result


PUBLISHED = (
    "accuracy",
    *(f"{name}_score_{of}" for name in ("precision", "recall", "f1") for of in ("micro", "macro", "weighted")),
)


def published(predictions: Sequence[Prediction], rows: Sequence[Row], state: State, _options: Json) -> dict[str, float]:
    """Return the metrics as the published evaluation component has them."""
    from finetune.tasks.token_classification import metrics as of_tags

    return of_tags.published(*_both_sides(predictions, rows, state), entities=bool(state.scheme))


def _both_sides(
    predictions: Sequence[Prediction], rows: Sequence[Row], state: State
) -> tuple[list[list[str]], list[list[str]]]:
    """Return the predicted and the gold tags of each row, in the letters that the metrics know."""
    pairs = [compared(prediction, row, state) for prediction, row in zip(predictions, rows, strict=True)]
    return (
        [as_iobes(pair.predicted, state.scheme) for pair in pairs],
        [as_iobes(pair.gold, state.scheme) for pair in pairs],
    )


def breakdown(predictions: Sequence[Prediction], rows: Sequence[Row], state: State) -> Breakdown:
    """Return metrics of each type of entity, or each tag, and the types of words, O among them, against each other."""
    from finetune.tasks.token_classification.metrics import by_class

    confusion: dict[str, Counter[str]] = {}
    found: list[Item] = []
    right: list[Item] = []
    for i, (prediction, row) in enumerate(zip(predictions, rows, strict=True)):
        pair = compared(prediction, row, state)
        for wanted, given in zip(pair.gold, pair.predicted, strict=True):
            counts = confusion.setdefault(type_of(wanted, state.scheme), Counter())
            counts[type_of(given, state.scheme)] += 1
        found += [(item[0], i, *item[1:]) for item in _items(pair.predicted, state)]
        right += [(item[0], i, *item[1:]) for item in _items(pair.gold, state)]
    return Breakdown(by_class(found, right), {name: dict(counts) for name, counts in sorted(confusion.items())})


def _items(tags: Sequence[str], state: State) -> list[Item]:
    """Return what is scored, its class first: entities, or the tag of each word."""
    return list(entities(tags, state.scheme)) if state.scheme else [(tag, i) for i, tag in enumerate(tags)]


def examine(prediction: Prediction, row: Row, state: State) -> Examined:
    """Return what the report shows; the score is the F1 of entities, or the share of words with the right tag.

    The confidence is what that score is expected to be: the mean score of the entities found, the lowest of all words
    where none is found; without entities the mean score of all words.
    """
    tags = prediction["tags"]
    pair = compared(prediction, row, state) if row["tags"] else Compared([*range(len(tags))], tags, [])
    described = (
        _entities_beside_gold(prediction, row, pair, state)
        if state.scheme
        else _tags_beside_gold(prediction, row, pair)
    )
    if not pair.gold:
        described["score"] = None
    return Examined(
        id=row["id"], row=row["row"], length=len(row["tokens"]), group="", title="", text=text_of(row), **described
    )


def _entities_beside_gold(prediction: Prediction, row: Row, pair: Compared, state: State) -> Json:
    text, scores = text_of(row), prediction["scores"]
    placed = [prediction["spans"][i] for i in pair.words]
    sides = {"predicted": entities(pair.predicted, state.scheme), "gold": entities(pair.gold, state.scheme)}
    found, right = sides.values()
    shown = {
        side: ", ".join(f"{e.type} {text[placed[e.first][0] : placed[e.last][1]]}" for e in some)
        for side, some in sides.items()
    }
    sure = [entity["score"] for entity in prediction["entities"]]
    return {
        "score": 200 * len({*found} & {*right}) / (len(found) + len(right)) if found or right else 100.0,
        "confidence": sum(sure) / len(sure) if sure else min(scores, default=0.0),
        "marks": tuple((placed[e.first][0], placed[e.last][1], side) for side, some in sides.items() for e in some),
        "predicted": shown["predicted"],
        "gold": (shown["gold"],) if right else (),
    }


def _tags_beside_gold(prediction: Prediction, row: Row, pair: Compared) -> Json:
    scores, sides = prediction["scores"], (pair.predicted, pair.gold or pair.predicted)
    wrong = [(i, *tags) for i, *tags in zip(pair.words, *sides, strict=True) if tags[0] != tags[1]]
    return {
        "score": 100 * (1 - len(wrong) / max(1, len(pair.words))),
        "confidence": sum(scores) / len(scores),
        "marks": tuple((*prediction["spans"][i], "predicted") for i, *_ in wrong),
        "predicted": ", ".join(f"{row['tokens'][i]}/{given}" for i, given, _ in wrong),
        "gold": (", ".join(f"{row['tokens'][i]}/{wanted}" for i, _, wanted in wrong),) if wrong else (),
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
