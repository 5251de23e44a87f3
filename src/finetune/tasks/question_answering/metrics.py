"""The metrics of the official scripts. (`evaluate.load("squad_v2")` fetches code from a hub, and holds all rows.)"""

import math
import re
import string
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import compress

from finetune.core.types import Json

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DIGITS = str.maketrans("", "", string.digits)
BEYOND = 1.0  # logits between a threshold and the last value, where it lets all answers through or none


def normalize_answer(text: str) -> str:
    """Return the text in lower case, without punctuation, English articles and extra space (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_score(gold: str, predicted: str) -> float:
    return float(normalize_answer(gold) == normalize_answer(predicted))


def f1_score(gold: str, predicted: str) -> float:
    """Return the harmonic mean of precision and recall over the bag of words; two empty answers agree."""
    gold_words, words = normalize_answer(gold).split(), normalize_answer(predicted).split()
    if not gold_words or not words:
        return float(gold_words == words)
    shared = sum((Counter(gold_words) & Counter(words)).values())
    return 2 * shared / (len(gold_words) + len(words))


def squad_scores(golds: Sequence[str], predicted: str) -> tuple[float, float]:
    """Return exact and F1 of a prediction, the best over its gold texts. No gold text means that there is no answer."""
    texts = [gold for gold in golds if normalize_answer(gold)] or [""]
    return max(exact_score(t, predicted) for t in texts), max(f1_score(t, predicted) for t in texts)


def published(predicted: Iterable[str], golds: Iterable[Sequence[str]], options: Json) -> dict[str, float]:
    """Return exact_match and f1_score, 0 to 1, as azureml-metrics computes them, each the best over the gold texts.

    Its exact_match compares texts as they are, but for what the options leave out; its f1_score is that of SQuAD.
    """
    exact, f1 = array("d"), array("d")
    for text, given in zip(predicted, golds, strict=True):
        texts = list(given) or [""]
        exact.append(max(_left(gold, options) == _left(text, options) for gold in texts))
        f1.append(max(f1_score(gold, text) for gold in texts))
    return {"exact_match": sum(exact) / len(exact), "f1_score": sum(f1) / len(f1)}


def _left(text: str, options: Json) -> str:
    """Return what is left of a text to compare."""
    for pattern in options.get("regexes_to_ignore") or ():
        text = re.sub(pattern, "", text)
    text = text.lower() if options.get("ignore_case") else text
    if options.get("ignore_punctuation") or options.get("ignore_punctuations"):
        text = text.translate(_PUNCTUATION)
    return text.translate(_DIGITS) if options.get("ignore_numbers") else text


def best_threshold(
    scores: Sequence[float], no_answer: Sequence[float], has_answer: Sequence[int], answered: Sequence[int]
) -> tuple[float, float]:
    """Return the best mean score in percent and its threshold, above which a no_answer value withholds the answer.

    This is the sweep of evaluate-v2.0.py (Rajpurkar et al. 2018): begin with every answer withheld, then let answers
    through in the order of their no_answer value; the first best sum wins.
    """
    current = best = float(sum(not answerable for answerable in has_answer))
    # Below every value, so that every answer is withheld; the script, made for probabilities, says 0.
    threshold = min(0.0, math.nextafter(min(no_answer), -math.inf))
    for i in sorted(range(len(scores)), key=lambda i: no_answer[i]):
        current += scores[i] if has_answer[i] else -float(answered[i])
        if current > best:
            best, threshold = current, no_answer[i]
    return 100.0 * best / max(len(scores), 1), threshold


def amid(no_answer: Sequence[float], threshold: float) -> float:
    """Return a threshold that withholds the same answers, as far as can be from the values: rounding flips none.

    The threshold of the sweep is itself the value of the last answer that is let through.
    """
    through = [value for value in no_answer if value <= threshold]
    withheld = [value for value in no_answer if value > threshold]
    if not through or not withheld:
        return max(through) + BEYOND if through else min(withheld) - BEYOND
    return (max(through) + min(withheld)) / 2


def official(predictions: Iterable[Json], golds: Iterable[Sequence[str]]) -> dict[str, float]:
    """Return exact, F1 and totals as evaluate-v2.0.py has them; without unanswerable rows they equal evaluate-v1.1.py.

    Of a prediction, text is what is answered ("" for no answer), span_text what would be answered otherwise, and
    null_score how much speaks for no answer; best_* are the sweep over the latter two. `golds` are the texts of each
    row, none where there is no answer. Rows are taken one by one, and of each a few numbers are kept.
    """
    exact, f1, exact_of_span, f1_of_span, no_answer = (array("d") for _ in range(5))
    has_answer, answered = array("b"), array("b")
    for prediction, texts in zip(predictions, golds, strict=True):
        text, span = prediction["text"], prediction["span_text"]
        scores = squad_scores(texts, text)
        of_span = scores if span == text else squad_scores(texts, span)
        for kept, value in zip((exact, f1, exact_of_span, f1_of_span), (*scores, *of_span), strict=True):
            kept.append(value)
        no_answer.append(prediction["null_score"])
        has_answer.append(bool(texts))
        answered.append(bool(span))
    result = _summary("", exact, f1)
    for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
        chosen = [bool(answerable) == wanted for answerable in has_answer]
        if any(chosen):
            result |= _summary(prefix, array("d", compress(exact, chosen)), array("d", compress(f1, chosen)))
    if not all(has_answer):
        for name, values in (("exact", exact_of_span), ("f1", f1_of_span)):
            best, threshold = best_threshold(values, no_answer, has_answer, answered)
            result |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return result


def _summary(prefix: str, exact: Sequence[float], f1: Sequence[float]) -> dict[str, float]:
    count = len(exact)
    return {
        f"{prefix}exact": 100.0 * sum(exact) / count,
        f"{prefix}f1": 100.0 * sum(f1) / count,
        f"{prefix}total": count,
    }
