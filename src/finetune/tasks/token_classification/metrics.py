"""The metrics of seqeval and scikit-learn, as `evaluate.Metric` classes that work offline."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import datasets
import evaluate

from finetune.tasks.task import Item


class Seqeval(evaluate.Metric):  # type: ignore[misc]
    """The entities by seqeval (Nakayama 2018): its default mode, equal to conlleval.pl; its strict mode as strict_*.

    predictions, references: a list of tags for each row. config_name: IOB1, IOB2, IOE2, IOBES, or another with its tags
    in the letters of IOBES. Precision, recall and F1 are micro averages over entities, accuracy that of tags; 0 to 1.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _of_tags("Entities in tags")

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        from seqeval.metrics import sequence_labeling, v1
        from seqeval.scheme import IOB1, IOB2, IOBES, IOE2

        options = {"average": "micro", "zero_division": 0}
        scheme = {"IOB1": IOB1, "IOB2": IOB2, "IOE2": IOE2}.get(self.config_name, IOBES)
        plain = sequence_labeling.precision_recall_fscore_support(references, predictions, **options)
        strict = v1.precision_recall_fscore_support(references, predictions, scheme=scheme, **options)
        names = ("precision", "recall", "f1")
        return {
            **{name: float(value) for name, value in zip(names, plain, strict=False)},
            "accuracy": float(sequence_labeling.accuracy_score(references, predictions)),
            **{f"strict_{name}": float(value) for name, value in zip(names, strict, strict=False)},
        }


class Tagging(evaluate.Metric):  # type: ignore[misc]
    """The metrics of tags that mark no entities: accuracy, and macro averages over tags gold or predicted; 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        return _of_tags("Tags")

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, precision_recall_fscore_support

        gold, given = [tag for row in references for tag in row], [tag for row in predictions for tag in row]
        precision, recall, f1, _ = precision_recall_fscore_support(gold, given, average="macro", zero_division=0)
        scores = {
            "accuracy": accuracy_score(gold, given),
            "f1": f1,
            "precision": precision,
            "recall": recall,
        }
        return {name: float(value) for name, value in scores.items()}


AVERAGES = ("micro", "macro", "weighted")


def published(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], entities: bool
) -> dict[str, float]:
    """Return the metrics of azureml-metrics: of entities by seqeval, of tags that mark none by scikit-learn.

    It asks seqeval for both, which takes N and V for entities of one type.
    """
    from seqeval.metrics import sequence_labeling
    from sklearn.metrics import precision_recall_fscore_support

    result = {"accuracy": float(sequence_labeling.accuracy_score(references, predictions))}
    score = sequence_labeling.precision_recall_fscore_support if entities else precision_recall_fscore_support
    pairs = (references, predictions) if entities else ([*chain(*references)], [*chain(*predictions)])
    for average in AVERAGES:
        precision, recall, f1, _ = score(*pairs, average=average, zero_division=0)
        found = {"precision": precision, "recall": recall, "f1": f1}
        result |= {f"{name}_score_{average}": float(value) for name, value in found.items()}
    return result


def _of_tags(description: str) -> evaluate.MetricInfo:
    tags = datasets.Sequence(datasets.Value("string"))
    features = datasets.Features(predictions=tags, references=tags)
    return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)


def by_class(found: Sequence[Item], gold: Sequence[Item]) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 (0 to 1) and support by class; items are distinct and begin with their class."""
    right = Counter(item[0] for item in set(found) & set(gold))
    given, wanted = Counter(item[0] for item in found), Counter(item[0] for item in gold)
    return {
        name: {
            "precision": right[name] / given[name] if given[name] else 0.0,
            "recall": right[name] / wanted[name] if wanted[name] else 0.0,
            "f1": 2 * right[name] / (given[name] + wanted[name]),
            "support": wanted[name],
        }
        for name in sorted(given | wanted)
    }
