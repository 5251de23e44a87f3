"""What is said and asked of the tags of a data set."""

import pytest

from finetune.core.errors import DataError
from finetune.data.table import Row
from finetune.tasks.token_classification import classes
from tests.tasks.token_classification.conftest import row


def numbered(*tags: str) -> list[Row]:
    """Rows 1, 2, … of these tags; ? stands for a word that isn't annotated."""
    rows = [row(*(["w"] * len(each.split())), tags=each) for each in tags]
    return [
        {**made, "row": i, "tags": [None if tag == "?" else tag for tag in made["tags"]]}
        for i, made in enumerate(rows, start=1)
    ]


def test_another_tag_for_o_is_asked_about() -> None:
    splits = {"train": numbered("B-A O", "B-A 0", "0 0"), "test": numbered("0")}
    with pytest.raises(DataError) as raised:
        classes.refuse_other_outside(splits)
    (fault,) = raised.value.faults
    assert (fault.what, fault.where) == ("is O meant by the tag '0'?", "train row 2, train row 3, test row 1")
    assert "sed -i -E 's/([[:space:]])0([[:space:]]*)$/\\1O\\2/' FILE" in fault.fix
    classes.refuse_other_outside({"train": numbered("1 0 2"), "test": []})


def test_no_tag_for_words_outside_is_asked_about() -> None:
    with pytest.raises(DataError, match="no word has the tag O") as raised:
        classes.refuse_no_outside({"train": numbered("B-A", "B-A ? ?")})
    assert raised.value.faults[0].where == "train row 2"
    classes.refuse_no_outside({"train": numbered("B-A ?", "O")})
    classes.refuse_no_outside({"train": numbered("B-A B-B")})
    classes.refuse_no_outside({"train": numbered("B M E S ?")})  # of word segmentation


def test_strangers_are_named_with_their_rows() -> None:
    splits = {"train": numbered(*["B-LOC O"] * 20, "B_LOC O", "O B_LOC"), "validation": [], "test": numbered("B-LOC")}
    assert classes.described(splits, ["B-LOC", "O"]) == [
        "classes: 2 (B-LOC, O)",
        "scheme: IOB2, found in the tags",
        "warning: B_LOC means nothing in IOB2; did you mean B-LOC? left out of loss and metrics: 2 words, in train row "
        "21, train row 22",
    ]


@pytest.mark.parametrize(
    ("tags", "example"),
    [
        ("B_A I_A O", "B-A, not B_A"),
        ("b-a i-a o", "B-a, not b-a"),
        ("O B:A", "B-A, not B:A"),
        ("U_A b_A L_A o", "L-A, not L_A"),
    ],
)
def test_tags_that_are_spelt_otherwise(tags: str, example: str) -> None:
    splits = {"train": numbered(tags)}
    *_, said = classes.described(splits, sorted(set(tags.split())))
    assert said.startswith(f"warning: written like {example}, ")
    assert said.endswith(f"the tags would mark entities, by {'BILOU' if 'U' in tags else 'IOB2'}")


@pytest.mark.parametrize("tags", ["n v s b e i", "0 1 2", "PER O LOC", "O o", "V_A N_B O B_C"])
def test_tags_that_are_no_scheme_in_any_spelling(tags: str) -> None:
    assert len(classes.described({"train": numbered(tags)}, sorted(set(tags.split())))) == 2


def test_rare_classes_are_named_where_there_are_many_rows() -> None:
    many = ["B-A O"] * 900
    splits = {"train": numbered(*many, "B-B O B-B", "B-C", "B-C", "B-C"), "validation": numbered(*["B-A"] * 95)}
    splits["test"] = numbered("B-B")
    labels = ["B-A", "B-B", "B-C", "O"]
    (said,) = classes.described(splits, labels)[2:]
    assert said == "warning: the class B-B stands in 2 of 1,000 rows: train row 901, test row 1"
    assert len(classes.described({**splits, "test": []}, labels)) == 2  # 999 rows
