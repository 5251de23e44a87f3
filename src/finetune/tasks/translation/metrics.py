"""The metrics of translation: BLEU, chrF and TER by sacreBLEU (Post 2018), and counts of what went wrong.

BLEU is Papineni et al. 2002, chrF Popović 2015, TER Snover et al. 2006. sacreBLEU splits texts into words as the
language needs it, and its signature says how.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from finetune.core.types import Json
from finetune.tasks.translation.scripts import main_script

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

ORDERS = (1, 2, 3, 4)
WORDS = {"zh": "zh", "zho": "zh", "ja": "char", "jpn": "char", "ko": "char", "kor": "char", "th": "char"}  # else 13a
_AGAIN = re.compile(r"\b(\w+(?:\W+\w+){1,5})(?:\W+\1\b){2,}")
LENGTHS = (10, 20, 40)  # words of a source, of the breakdown


def bleu(language: str, **options: Any) -> "BLEU":
    """Return sacreBLEU's BLEU for texts of the language."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=WORDS.get(re.split("[-_]", language)[0], "13a"), **options)


def chrf() -> "CHRF":
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def ter() -> "TER":
    from sacrebleu.metrics.ter import TER

    return TER()


def corpus(predicted: Sequence[str], gold: Sequence[str], language: str) -> dict[str, float]:
    """Return BLEU and chrF of all texts, 0 to 100."""
    references = [list(gold)]
    measures = {"bleu": bleu(language), "chrf": chrf()}
    return {name: float(measure.corpus_score(list(predicted), references).score) for name, measure in measures.items()}


def edits(predicted: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    """Return TER of all texts, best 0, which may be over 100: of random texts it takes ten times as long as BLEU."""
    return {"ter": float(ter().corpus_score(list(predicted), [list(gold)]).score)}


def signatures(language: str) -> Json:
    """Return how sacreBLEU computes each."""
    found: Json = {}
    for name, measure in {"bleu": bleu(language), "chrf": chrf(), "ter": ter()}.items():
        measure.corpus_score(["a"], [["a"]])  # a signature knows the number of references after that
        found[name] = str(measure.get_signature())
    return found


def published(predicted: Sequence[str], gold: Sequence[str], language: str) -> dict[str, float]:
    """Return bleu_1 to bleu_4, 0 to 1: BLEU of n-grams up to that order, without smoothing."""
    found = bleu(language).corpus_score(list(predicted), [list(gold)])
    shares = [right / total if total else 0.0 for right, total in zip(found.counts, found.totals, strict=True)]
    return {f"bleu_{n}": _geometric(shares[:n]) * found.bp for n in ORDERS}


def _geometric(shares: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, shares)) / len(shares)) if all(shares) else 0.0


def sentence(predicted: str, gold: str) -> float:
    """Return the chrF of one text, 0 to 100: BLEU is not made for one."""
    return float(chrf().sentence_score(predicted, [gold]).score)


def off_target(predicted: str, source: str, gold: str | None) -> Iterator[str]:
    """Yield what is wrong with a translation, whatever it means."""
    if not predicted:
        yield "empty"
        return
    if predicted == source and gold != source:
        yield "copied"
    wanted = main_script(gold or "")
    if wanted and main_script(predicted) not in ("", wanted):
        yield "wrong_script"
    if _AGAIN.search(predicted):
        yield "repeated"


OFF_TARGET = ("empty", "copied", "wrong_script", "repeated")
