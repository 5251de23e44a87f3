"""Outputs -> loss, tags, entities and metrics, against PyTorch, seqeval and scikit-learn."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, classification_report, f1_score, precision_score, recall_score
from seqeval.scheme import IOB1, IOB2, IOBES, IOE2
from sklearn import metrics as sklearn_metrics
from transformers import BertConfig, BertForTokenClassification

from finetune.data.table import Row
from finetune.tasks.token_classification import objective as tc_objective
from finetune.tasks.token_classification import tags as tc_tags
from finetune.tasks.token_classification.schemes import as_iobes
from finetune.tasks.token_classification.windows import IGNORED, NO_WORD
from tests.tasks.token_classification.conftest import row, state

SCHEMES = {
    "IOB1": ("BI", IOB1),
    "IOB2": ("BI", IOB2),
    "IOE2": ("IE", IOE2),
    "IOBES": ("BIES", IOBES),
    "BILOU": ("BILU", IOBES),
    "BMES": ("BMES", IOBES),
    "BMEWO": ("BMEW", IOBES),
}


def tiny_bert(vocab_size: int, labels: int = 3) -> BertForTokenClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForTokenClassification(BertConfig(vocab_size=vocab_size, num_labels=labels, **sizes)).eval()


def predicted(tags: list[str], given_row: Row, **values: Any) -> Any:
    """The prediction of a model that is 0.9 sure of these tags."""
    made = state(labels=sorted(set(tags)), **values)
    arrays = {
        "row": np.zeros(len(tags), dtype=np.int64),
        "word": np.arange(len(tags)),
        "class": np.array([made.labels.index(tag) for tag in tags]),
        "score": np.full(len(tags), 0.9),
    }
    (prediction,) = tc_tags.decode(arrays, [given_row], made)
    return prediction


def test_loss_is_the_sum_over_words() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3), torch.tensor([[IGNORED, 2, IGNORED, 0], [1, IGNORED, IGNORED, IGNORED]])
    losses = tc_objective.loss({"logits": logits}, {"labels": labels})
    plain = [torch.nn.functional.cross_entropy(logits[i], labels[i], reduction="sum").item() for i in range(2)]
    assert losses.tolist() == pytest.approx(plain, abs=1e-6)
    assert tc_objective.items({"labels": labels}).tolist() == [2, 1]


@pytest.mark.parametrize("weights", [None, torch.tensor([0.25, 4.0, 1.5])])
def test_loss_over_items_is_that_of_pytorch(weights: torch.Tensor | None) -> None:
    """However windows are put into batches."""
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5, 3), torch.randint(0, 3, (6, 5))
    labels[torch.rand(6, 5) < 0.3] = IGNORED
    labels[3] = IGNORED  # a window without a word that counts
    expected = torch.nn.CrossEntropyLoss(weight=weights)(logits.flatten(0, 1), labels.flatten())
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    loss = sum(tc_objective.loss({"logits": logits[p]}, {"labels": labels[p]}, weights).sum() for p in parts)
    items = sum(tc_objective.items({"labels": labels[p]}, weights).sum() for p in parts)
    assert float(loss / items) == pytest.approx(float(expected), abs=1e-6)


def test_reduce_and_compact() -> None:
    logits = torch.tensor([[[0.0, 5.0], [5.0, 0.0], [0.0, 9.0]], [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    batch = {"row": torch.tensor([4, 7]), "word": torch.tensor([[NO_WORD, 2, 3], [0, NO_WORD, NO_WORD]])}
    reduced = {name: tensor.numpy() for name, tensor in tc_tags.reduce({"logits": logits}, batch, state()).items()}
    flat = tc_tags.compact({**reduced, "loss": np.array([0.5, 0.25])})
    assert {name: flat[name].tolist() for name in ("row", "word", "class")} == {
        "row": [4, 4, 7],
        "word": [2, 3, 0],
        "class": [0, 1, 0],
    }
    assert flat["score"].tolist() == pytest.approx([0.99331, 0.99988, 0.73106], abs=1e-5)
    assert flat["loss"].tolist() == [0.5, 0.25]


def test_a_prediction() -> None:
    prediction = predicted(["B-PER", "I-PER", "O"], row("Ada", "Lovelace", "won"))
    assert prediction["tags"] == ["B-PER", "I-PER", "O"]
    assert prediction["spans"] == [[0, 3], [4, 12], [13, 16]]
    (entity,) = prediction["entities"]
    assert entity.pop("score") == pytest.approx(0.9)
    assert entity == {"type": "PER", "text": "Ada Lovelace", "start": 0, "end": 12, "first": 0, "last": 1}


def test_spans_are_those_of_the_text_that_was_given() -> None:
    given_row = row("Ada", "Lovelace", ".", text="    Ada\nLovelace.")
    (entity,) = predicted(["B-PER", "I-PER", "O"], given_row)["entities"]
    assert (entity["start"], entity["end"], entity["text"]) == (4, 16, "Ada\nLovelace")


def unsure(tags: list[str], scores: list[float], given_row: Row, **values: Any) -> Any:
    """(prediction with these scores, what the report shows of it)."""
    made = state(labels=sorted(set(tags)), **values)
    classes = np.array([made.labels.index(tag) for tag in tags])
    arrays = {
        "row": np.zeros(len(tags), int),
        "word": np.arange(len(tags)),
        "class": classes,
        "score": np.array(scores),
    }
    (prediction,) = tc_tags.decode(arrays, [given_row], made)
    return prediction, tc_tags.examine(prediction, given_row, made)


def test_scores_and_confidences() -> None:
    prediction, _ = unsure(["B-P", "I-P", "O"], [0.9, 0.5, 0.8], row("a", "b", "c"))
    assert prediction["entities"][0]["score"] == pytest.approx(0.7)  # the mean over its words
    two = unsure(["B-P", "B-P"], [0.9, 0.5], row("a", "b", tags="B-P B-P"))[1]
    assert two.confidence == pytest.approx(0.7)  # the mean over entities
    assert unsure(["O", "O"], [0.9, 0.5], row("a", "b", tags="O O"))[1].confidence == pytest.approx(0.5)  # the lowest
    parts = unsure(["X", "Y"], [0.9, 0.5], row("a", "b", tags="X Y"), scheme="")[1]
    assert parts.confidence == pytest.approx(0.7)  # the mean over words


def half_annotated(tags: str, **values: Any) -> Row:
    """A row of which `?` are not annotated."""
    made = row(*"abcdefghij"[: len(tags.split())], tags=tags, **values)
    return {**made, "tags": [None if tag == "?" else tag for tag in made["tags"]]}


@pytest.mark.parametrize("scheme", ["IOB2", ""])
def test_words_that_are_not_annotated_count_nowhere(scheme: str) -> None:
    """Whatever is predicted for them; nor do strangers."""
    gold = half_annotated("B-PER ? O B_PER B-PER O")
    plain = row("a", "c", "e", "f", tags="B-PER O B-PER O")
    made = state(scheme=scheme, strangers=["B_PER"])
    expected = [{"tags": ["B-PER", "B-PER", "O", "O"]}]
    for other in ("B-PER", "I-PER", "O"):
        predictions = [{"tags": ["B-PER", other, "B-PER", other, "O", "O"]}]
        assert tc_tags.metrics(predictions, [gold], made) == tc_tags.metrics(expected, [plain], made)
        assert tc_tags.breakdown(predictions, [gold], made).confusion == {
            **({"PER": {"PER": 1, "O": 1}} if scheme else {"B-PER": {"B-PER": 1, "O": 1}}),
            "O": {"PER" if scheme else "B-PER": 1, "O": 1},
        }
        assert sum(c["support"] for c in tc_tags.breakdown(predictions, [gold], made).classes.values()) == 2 + 2 * (
            not scheme
        )


def test_a_row_without_any_word_that_counts() -> None:
    made = state(strangers=["B_PER"])
    rows = [row("a", tags="B_PER"), row("a", "b", tags="B-PER O")]
    predictions = [predicted(["B-PER"], rows[0]), predicted(["B-PER", "O"], rows[1])]
    assert tc_tags.metrics(predictions, rows, made)["strict_f1"] == tc_tags.metrics(predictions, rows, made)["f1"] == 1
    found = tc_tags.examine(predictions[0], rows[0], made)
    assert (found.score, found.marks, found.gold) == (None, (), ())


def test_what_is_shown_of_a_row_that_is_half_annotated() -> None:
    gold = half_annotated("B-PER ? I-PER O ?")
    found = unsure(["B-PER", "O", "I-PER", "B-PER", "B-PER"], [0.9] * 5, gold)[1]
    assert (found.predicted, found.gold) == ("PER a b c, PER d", ("PER a b c",))
    assert found.score == pytest.approx(100 * 2 / 3)
    assert found.marks == ((0, 5, "predicted"), (6, 7, "predicted"), (0, 5, "gold"))
    tags = unsure(["X", "Y", "Y"], [0.9] * 3, half_annotated("X ? X"), scheme="")[1]
    assert (tags.score, tags.predicted, tags.gold, tags.marks) == (50, "c/Y", ("c/X",), ((4, 5, "predicted"),))


def test_rows_that_are_not_annotated_have_no_gold_marks() -> None:
    found = unsure(["B-P"], [0.9], row("a"))[1]
    assert (found.gold, found.marks, found.score) == ((), ((0, 1, "predicted"),), None)


def test_entries_of_rows_come_in_any_order() -> None:
    arrays = {"row": np.array([1, 0]), "word": np.zeros(2, int), "class": np.array([0, 2]), "score": np.ones(2)}
    assert [p["tags"] for p in tc_tags.decode(arrays, [row("a"), row("b")], state())] == [["O"], ["B-PER"]]


def test_half_precision_outputs_are_scored_in_full() -> None:
    logits, labels = torch.tensor([[[3.0, 1.0]]], dtype=torch.bfloat16), torch.tensor([[0]])
    assert tc_objective.loss({"logits": logits}, {"labels": labels}).dtype == torch.float32
    reduced = tc_tags.reduce({"logits": logits}, {"row": labels[0], "word": labels}, state())
    assert reduced["score"].dtype == torch.float32


def test_a_row_without_any_window() -> None:
    (prediction,) = tc_tags.decode({}, [row("", "\u200b")], state())
    assert (prediction["tags"], prediction["scores"], prediction["entities"]) == (["O", "O"], [0.0, 0.0], [])


def test_no_words() -> None:
    (prediction,) = tc_tags.decode({}, [row(text="")], state())
    assert prediction == {"tokens": [], "tags": [], "scores": [], "spans": [], "entities": []}


@st.composite
def tagged(draw: st.DrawFn, letters: str) -> tuple[list[list[str]], list[list[str]]]:
    names = ["O", *(f"{letter}-{kind}" for letter in letters for kind in ("PER", "LOC", "x-y"))]
    rows = draw(st.lists(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), min_size=1), min_size=1))
    return [[a for a, _ in r] for r in rows], [[b for _, b in r] for r in rows]


def scored(gold: list[list[str]], found: list[list[str]], scheme: str) -> tuple[dict[str, float], Any]:
    rows = [row(*(["w"] * len(tags)), tags=" ".join(tags)) for tags in gold]
    predictions, made = [{"tags": tags} for tags in found], state(scheme=scheme)
    return tc_tags.metrics(predictions, rows, made), tc_tags.breakdown(predictions, rows, made)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_metrics_are_those_of_seqeval(scheme: str, data: st.DataObject) -> None:
    letters, strict = SCHEMES[scheme]
    gold, found = data.draw(tagged(letters))
    metrics, breakdown = scored(gold, found, scheme)
    gold, found = ([as_iobes(tags, scheme) for tags in rows] for rows in (gold, found))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {name: f(gold, found) for name, f in (("precision", precision_score), ("recall", recall_score))}
        expected |= {"f1": f1_score(gold, found), "accuracy": accuracy_score(gold, found)}
        for name, f in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            expected[f"strict_{name}"] = f(gold, found, mode="strict", scheme=strict)
        report = classification_report(gold, found, output_dict=True, zero_division=0)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    for kind, values in breakdown.classes.items():
        theirs = report.get(kind, {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        ours = [values[name] for name in ("precision", "recall", "f1", "support")]
        assert ours == pytest.approx([theirs[n] for n in ("precision", "recall", "f1-score", "support")], abs=1e-9)
    assert {kind for kind in report if not kind.endswith(" avg")} <= set(breakdown.classes)
    assert sum(n for line in breakdown.confusion.values() for n in line.values()) == sum(map(len, gold))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.tuples(*[st.sampled_from(["NOUN", "VERB", "X"])] * 2), min_size=1), min_size=1))
def test_metrics_without_a_scheme_are_those_of_scikit_learn(pairs: list[list[tuple[str, str]]]) -> None:
    gold, found = [[a for a, _ in r] for r in pairs], [[b for _, b in r] for r in pairs]
    metrics, breakdown = scored(gold, found, "")
    flat = [[tag for r in side for tag in r] for side in (gold, found)]
    options = {"average": "macro", "zero_division": 0}
    assert metrics == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(*flat),
            "f1": sklearn_metrics.f1_score(*flat, **options),
            "precision": sklearn_metrics.precision_score(*flat, **options),
            "recall": sklearn_metrics.recall_score(*flat, **options),
        },
        abs=1e-9,
    )
    labels = sorted(breakdown.classes)
    each = sklearn_metrics.precision_recall_fscore_support(*flat, labels=labels, zero_division=0)
    for k, name in enumerate(("precision", "recall", "f1", "support")):
        assert [breakdown.classes[tag][name] for tag in labels] == pytest.approx(list(each[k]), abs=1e-9)
    matrix = sklearn_metrics.confusion_matrix(*flat, labels=labels)
    assert [[breakdown.confusion.get(a, {}).get(b, 0) for b in labels] for a in labels] == matrix.tolist()


def test_confusion_is_between_types() -> None:
    _, breakdown = scored([["B-PER", "I-PER", "O"]], [["B-LOC", "B-PER", "O"]], "IOB2")
    assert breakdown.confusion == {"PER": {"LOC": 1, "PER": 1}, "O": {"O": 1}}


def test_main_metric_of_entities_and_of_other_tags() -> None:
    from finetune.tasks.token_classification import TASK

    assert (TASK.scoring.main_metric(state()), TASK.scoring.main_metric(state(scheme=""))) == ("f1", "accuracy")


def test_examine_entities() -> None:
    given_row = row("Ada", "met", "Bo", tags="B-PER O B-PER")
    found = tc_tags.examine(predicted(["B-PER", "O", "O"], given_row), given_row, state())
    assert (found.score, found.confidence) == pytest.approx((200 / 3, 0.9))
    assert (found.predicted, found.gold, found.length) == ("PER Ada", ("PER Ada, PER Bo",), 3)
    assert found.marks == ((0, 3, "predicted"), (0, 3, "gold"), (8, 10, "gold"))


def test_examine_rows_without_entities() -> None:
    given_row = row("a", "b", tags="O O")
    right = tc_tags.examine(predicted(["O", "O"], given_row), given_row, state())
    assert (right.score, right.predicted, right.gold) == (100.0, "", ())
    assert right.confidence == pytest.approx(0.9)
    assert tc_tags.examine(predicted(["O", "B-PER"], given_row), given_row, state()).score == 0.0
    unknown = row("a", "b")
    assert tc_tags.examine(predicted(["O", "B-PER"], unknown), unknown, state()).score is None


def test_examine_other_tags() -> None:
    given_row, made = row("I", "run", "home", "now", tags="PRON VERB ADV ADV"), state(scheme="")
    found = tc_tags.examine(predicted(["PRON", "NOUN", "ADV", "ADV"], given_row, scheme=""), given_row, made)
    assert (found.score, found.predicted, found.gold) == (75.0, "run/NOUN", ("run/VERB",))
    assert found.marks == ((2, 5, "predicted"),)


def test_show() -> None:
    given_row = row("Ada", "Lovelace", "won", ".")
    shown = tc_tags.show(predicted(["B-PER", "I-PER", "O", "O"], given_row), given_row)
    assert shown == "[[Ada Lovelace PER]] won ."
    assert tc_tags.show(predicted(["O"] * 4, given_row), given_row) == "Ada Lovelace won ."
    parts = predicted(["PROPN", "PROPN", "VERB", "PUNCT"], given_row, scheme="")
    assert tc_tags.show(parts, given_row) == "Ada/PROPN Lovelace/PROPN won/VERB ./PUNCT"


def test_limits_name_the_tags() -> None:
    assert "B-PER, I-PER, O" in tc_tags.limits(state())[0]
    assert "IOB2" in tc_tags.limits(state())[-1]
    assert not any("scheme" in sentence for sentence in tc_tags.limits(state(scheme="")))


@pytest.mark.parametrize(
    ("tags", "scores", "alike"),
    [
        (["B-P", "I-P"], [0.5, 0.9], True),  # two that share the probability
        (["O", "O"], [0.5, 0.9], False),  # no other tag can have 0.9 too
        (["B-P", "O"], [0.52, 0.9], False),
        (["O", "I-P"], [0.5, 0.8], False),
        (["O", "I-P"], [0.5, 0.9001], True),
    ],
)
def test_ties(tags: list[str], scores: list[float], alike: bool) -> None:
    given_row = row("a", "b")
    expected, _ = unsure(["O", "I-P"], [0.5, 0.9], given_row)
    served = tc_tags.present(unsure(tags, scores, given_row)[0])
    assert tc_tags.tied(expected, served, state(), 1e-3) == alike
    assert not tc_tags.tied(expected, {**served, "spans": [[0, 1], [2, 9]]}, state(), 1e-3)
