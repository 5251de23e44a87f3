"""An answer and its offset -> where it stands in its context, or the reason why that can't be told."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.values import Unusable
from finetune.tasks.question_answering.placing import REPAIR_DISTANCE, TRIMMED, bare, placed
from tests.tasks.question_answering.conftest import PARAGRAPHS

FAR = " and so on" * 10
PLAIN = "Its Parts were art by then, and Startled they saw it."


BEYOND = "answer_start is beyond the context; the answer stands near by"
CASE, SPACE, FORM, ALL = (
    f"an answer differs from the context in {kinds}; the context's characters instead"
    for kinds in ("case", "white space", "Unicode form", "Unicode form and white space and case")
)


def place(context: str, text: str, start: int | None) -> tuple[str, int, list[str]]:
    repairs: list[str] = []
    return *placed(context, text, start, repairs), repairs


@pytest.mark.parametrize(
    ("context", "text", "start", "expected", "repairs"),
    [
        # as the file says
        (PLAIN, "art", 5, ("art", 5), []),
        ("東京都は日本", "京都", 1, ("京都", 1), []),
        # white space and unseen characters around it
        ("By Ada Byron.", " Ada ", 2, ("Ada", 3), [TRIMMED]),
        ("By Ada Byron.", " Ada ", 3, ("Ada", 3), [TRIMMED]),
        ("By \u200bAda\u2060.", "\u200bAda\u2060", 3, ("Ada", 4), [TRIMMED]),
        # equal at the offset
        ("By Ada Byron.", "ADA BYRON", 3, ("Ada Byron", 3), [CASE]),
        ("By Ada \t\u00a0Byron.", "Ada Byron", 3, ("Ada \t\u00a0Byron", 3), [SPACE]),
        ("Zoe\u0308 came", "Zoë", 0, ("Zoe\u0308", 0), [FORM]),
        ("So Zoë came", "zoe\u0308\n  came", 3, ("Zoë came", 3), [ALL]),
        ("Die Straße hier", "STRASSE", 4, ("Straße", 4), [CASE]),
        ("xa\u0307\u0323", "xa\u0323\u0307", 0, ("xa\u0307\u0323", 0), [FORM]),
        # counted otherwise
        ("🙂🙂 by Ada", "Ada", 8, ("Ada", 6), ["answer_start counted UTF-16 units"]),
        ("éé by Ada", "Ada", 8, ("Ada", 6), ["answer_start counted bytes"]),
        # near by
        (PLAIN, "art", 13, ("art", 15), ["answer_start was off; the answer stands near by"]),
        (PLAIN, "Art", 13, ("art", 15), ["answer_start was off; the answer stands near by", CASE]),
        ("Ada met another Ada.", "Ada", 1, ("Ada", 0), ["answer_start was off; the answer stands near by"]),
        ("Ada met another Ada.", "Ada", 19, ("Ada", 16), ["answer_start was off; the answer stands near by"]),
        ("Ada met another Ada.", "Ada", 21, ("Ada", 16), [BEYOND]),
        # the only place
        ("Ada" + FAR, "Ada", 60, ("Ada", 0), ["answer_start was off; the answer stands at one place"]),
        (PLAIN, "art", 0, ("art", 15), ["answer_start is 0; the answer stands at one place"]),
        (PLAIN, "art", -1, ("art", 15), ["answer_start is negative; the answer stands at one place"]),
        (PLAIN, "art", -(10**30), ("art", 15), ["answer_start is negative; the answer stands at one place"]),
        (PLAIN, "art", 10**30, ("art", 15), ["answer_start is beyond the context; the answer stands at one place"]),
        (PLAIN, "art", None, ("art", 15), ["no answer_start; the answer stands at one place"]),
        (PLAIN, "BY THEN", None, ("by then", 19), ["no answer_start; the answer stands at one place", CASE]),
        ("Mars may. In May", "May", None, ("May", 13), ["no answer_start; the answer stands at one place"]),
        # scripts without spaces, and signs that end no word
        ("彼は東京都に住む", "東京", None, ("東京", 2), ["no answer_start; the answer stands at one place"]),
        ("เขาอยู่กรุงเทพมานาน", "กรุงเทพ", None, ("กรุงเทพ", 7), ["no answer_start; the answer stands at one place"]),
        ("在Delft的", "Delft", None, ("Delft", 1), ["no answer_start; the answer stands at one place"]),
        ("in Ada’s art-house", "Ada", None, ("Ada", 3), ["no answer_start; the answer stands at one place"]),
    ],
)  # fmt: skip
def test_found(context: str, text: str, start: int | None, expected: tuple[str, int], repairs: list[str]) -> None:
    assert place(context, text, start) == (*expected, repairs)


@pytest.mark.parametrize(
    ("context", "text", "start", "reason"),
    [
        (PLAIN, "Kit", 5, "the answer is not in the context"),
        ("cafe\u0301 is open", "CAFE", 0, "the answer is not in the context"),
        ("Its Parts Startled him", "art", 4, "the answer stands inside other words alone"),
        ("Its Parts Startled him", "art", 0, "the answer stands inside other words alone"),
        ("Ada met Ada", "Ada", 4, "answer_start was off, and the answer stands at two places equally near"),
        ("Ada met Ada", "Ada", -1, "answer_start is negative, and the answer stands at several places"),
        ("An Ada met Ada", "Ada", 0, "answer_start is 0, and the answer stands at several places"),
        ("Ada met Ada", "Ada", None, "no answer_start, and the answer stands at several places"),
        ("Ada met ADA", "ada", None, "no answer_start, and the answer stands at several places"),
        ("Ada met Ada" + FAR * 2, "Ada", 150, "answer_start was off, and the answer stands at several places"),
        # words, numbers and characters that would be cut
        ("in 1843", "18", None, "the answer stands inside other words alone"),
        ("it is 3.5 or 1,200", "5", None, "the answer stands inside other words alone"),
        ("it is 3.5 or 1,200", "1", None, "the answer stands inside other words alone"),
        ("cafe\u0301 is open", "cafe", None, "the answer stands inside other words alone"),
        ("हिन्दी भाषा", "हिन", None, "the answer stands inside other words alone"),
        ("می\u200cشود", "شود", None, "the answer stands inside other words alone"),
        ("a 👩\u200d👧 here", "👧", None, "the answer stands inside other words alone"),
        ("น้ำ", "น", None, "the answer stands inside other words alone"),
        ("die Strasse", "straß", None, "the answer stands inside other words alone"),
    ],
)
def test_refused(context: str, text: str, start: int | None, reason: str) -> None:
    with pytest.raises(Unusable) as refused:
        place(context, text, start)
    assert str(refused.value) == reason


def caseless(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", " ".join(text.split()))
    return unicodedata.normalize("NFD", decomposed.casefold())


CORRUPTIONS = [
    lambda text: text, str.upper, str.lower, lambda text: unicodedata.normalize("NFD", text),
    lambda text: unicodedata.normalize("NFC", text), lambda text: text.replace(" ", "\u00a0 "),
    lambda text: f" {text}\u200b",
]  # fmt: skip


@given(st.data(), PARAGRAPHS, st.sampled_from(CORRUPTIONS))
def test_the_text_stands_where_it_is_said_to(data: st.DataObject, context: str, corrupt: object) -> None:
    """Found or refused; what is found is equal but for case, Unicode form and white space."""
    start = data.draw(st.integers(0, len(context) - 1))
    text = corrupt(context[start : start + data.draw(st.integers(1, 20))])  # type: ignore[operator]
    seen = text.strip(" \t\r\n\u00a0\u3000\u2028\u200b\ufeff")
    if not seen:
        return
    offset = data.draw(st.none() | st.integers(-60, len(context) + 60) | st.just(start))
    try:
        found, at, _ = place(context, text, offset)
    except Unusable:
        return
    assert context.startswith(found, at)
    assert caseless(found) == caseless(seen)


WORDS = st.lists(
    st.sampled_from(["art", "Art", "Parts", "cart", "café", "cafe\u0301", "12", "1243", "東京"]),
    min_size=1,
    max_size=30,
)


@given(st.data(), WORDS, st.sampled_from(CORRUPTIONS), st.integers(-70, 70))
def test_words_are_found_again_or_refused(data: st.DataObject, words: list[str], corrupt: object, off: int) -> None:
    """An answer of whole words with a wrong offset is placed at whole words that are equal to it, never inside one,
    unless it stands exactly there; and at those it came from wherever no equal words are as near."""
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 2, len(words) - 1)))
    starts = [len(" ".join(words[:i])) + (i > 0) for i in range(len(words))]
    context, answer = " ".join(words), " ".join(words[first : last + 1])
    text, length = corrupt(answer), last - first + 1  # type: ignore[operator]
    equal = [starts[i] for i in range(len(words)) if caseless(" ".join(words[i : i + length])) == caseless(answer)]
    offset = starts[first] + off
    exactly = {
        offset,
        offset + len(text) - len(text.lstrip()),
        len(context.encode()[: max(offset, 0)].decode(errors="ignore")),
    }
    try:
        _, at, _ = place(context, text, offset)
    except Unusable:
        assert len(equal) > 1 and off
        return
    assert at in equal or at in exactly
    others = [i for i in equal if i != starts[first]]
    if (
        bare(text) == answer
        and offset > 0
        and abs(off) <= REPAIR_DISTANCE
        and all(abs(i - offset) > abs(off) for i in others)
    ):
        assert at == starts[first] or at in exactly
