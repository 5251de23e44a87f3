"""Weights of classes, out of the labels of windows."""

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets

from finetune.params.finetune import TokenClassificationParams
from finetune.tasks.token_classification import objective as tc_objective
from finetune.tasks.token_classification.windows import IGNORED
from tests.tasks.token_classification.conftest import state

FOLDERS = ("preprocess_output", "model_selector_output", "pytorch_model_folder", "mlflow_model_folder")
LABELS = [[IGNORED, 2, 2, 2, IGNORED], [2, 2, 0], [IGNORED]]


def windows() -> Dataset:
    """Of two files, as an Arrow table in two parts."""
    return concatenate_datasets([Dataset.from_dict({"labels": part}) for part in (LABELS[:2], LABELS[2:])])


def params(value: str) -> TokenClassificationParams:
    return TokenClassificationParams(**dict.fromkeys(FOLDERS, ""), class_weights=value)


def test_words_are_counted_by_class() -> None:
    assert tc_objective.class_counts(windows(), 4).tolist() == [1, 0, 5, 0]


def test_balanced_weights_make_classes_count_alike() -> None:
    weights = tc_objective.balanced(np.array([1, 0, 5, 0]))
    assert weights.tolist() == pytest.approx([6 / (2 * 1), 1, 6 / (2 * 5), 1])


@pytest.mark.parametrize(("value", "power"), [("balanced", 1.0), ("sqrt", 0.5)])
def test_weighed(value: str, power: float) -> None:
    objective, (derived,) = tc_objective.weigh(params(value), state(), windows())
    batch = {"labels": torch.tensor(LABELS[1])[None]}
    assert objective.items(batch).tolist() == pytest.approx([2 * 0.6**power + 3**power])
    assert derived.name == "class_weights"
    assert derived.value == {"B-PER": round(3**power, 5), "I-PER": 1.0, "O": round(0.6**power, 6)}
    assert derived.reason == f"{value}, of 6 words of 2 classes"


def test_none_by_default() -> None:
    objective, derived = tc_objective.weigh(params("none"), state(), windows())
    assert derived == [] and objective.items({"labels": torch.tensor(LABELS[1])[None]}).tolist() == [3]
