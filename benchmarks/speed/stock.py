"""What the public examples of question answering do around the Trainer: windows of rows, and answers of logits.

Both are written anew, from the algorithm: windows in calls of 1,000 rows by `Dataset.map`, with a loop over tokens for
each answer; the n best starts with the n best ends of each window, one pair after another.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

N_BEST, LONGEST_ANSWER = 20, 30  # defaults of the examples, and of the preprocess component
LENGTH, STRIDE = 384, 128


def windows(rows: Mapping[str, Sequence[Any]], tokenizer: Any, pad: bool) -> dict[str, list[Any]]:
    """Return the windows of some rows, for `Dataset.map` in batches, with the tokens of the answer and offsets."""
    encoded = tokenizer(
        rows["question"],
        rows["context"],
        truncation="only_second",
        max_length=LENGTH,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length" if pad else False,
    )
    owners = encoded.pop("overflow_to_sample_mapping")
    found = dict(encoded) | {"start_positions": [], "end_positions": [], "example_id": []}
    for i, owner in enumerate(owners):
        sequence = encoded.sequence_ids(i)
        first, last = sequence.index(1), len(sequence) - 1 - sequence[::-1].index(1)
        start, end = answer_tokens(rows["answers"][owner], encoded["offset_mapping"][i], first, last)
        found["start_positions"].append(start)
        found["end_positions"].append(end)
        found["example_id"].append(rows["id"][owner])
        found["offset_mapping"][i] = [
            offsets if part == 1 else None for offsets, part in zip(encoded["offset_mapping"][i], sequence, strict=True)
        ]
    return found


def answer_tokens(
    answers: Mapping[str, Any], offsets: Sequence[tuple[int, int]], first: int, last: int
) -> tuple[int, int]:
    """Return first and last token of the answer, 0 and 0 if the window from `first` to `last` doesn't hold it."""
    begins = answers["answer_start"][0]
    ends = begins + len(answers["text"][0])
    if offsets[first][0] > begins or offsets[last][1] < ends:
        return 0, 0
    start, end = first, last
    while start < last and offsets[start + 1][0] <= begins:
        start += 1
    while end > first and offsets[end - 1][1] >= ends:
        end -= 1
    return start, end


def answers(rows: Any, encoded: Any, starts: np.ndarray, ends: np.ndarray) -> dict[str, str]:
    """Return the text of each row's best answer, by id; `rows` and `encoded` are datasets, the logits (windows, L)."""
    of_row: dict[str, list[int]] = {}
    for i, name in enumerate(encoded["example_id"]):
        of_row.setdefault(name, []).append(i)
    found = {}
    for row in rows:
        candidates = [
            candidate
            for i in of_row.get(row["id"], [])
            for candidate in spans(starts[i], ends[i], encoded[i]["offset_mapping"])
        ]
        best = sorted(candidates, key=lambda candidate: candidate["score"], reverse=True)[:N_BEST]
        scores = np.array([candidate["score"] for candidate in best] or [0.0])
        weights = np.exp(scores - scores.max())
        for candidate, weight in zip(best, weights / weights.sum(), strict=False):
            begin, end = candidate["offsets"]
            candidate |= {"text": row["context"][begin:end], "probability": weight}
        found[row["id"]] = best[0]["text"] if best else ""
    return found


def spans(start: np.ndarray, end: np.ndarray, offsets: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the candidates of a window: the best starts with the best ends, where both lie in the context."""
    found = []
    for first in np.argsort(start)[: -N_BEST - 1 : -1].tolist():
        for last in np.argsort(end)[: -N_BEST - 1 : -1].tolist():
            if first >= len(offsets) or last >= len(offsets) or not offsets[first] or not offsets[last]:
                continue
            if last < first or last - first + 1 > LONGEST_ANSWER:
                continue
            place = (offsets[first][0], offsets[last][1])
            parts = {"start_logit": start[first], "end_logit": end[last]}
            found.append({"offsets": place, "score": start[first] + end[last], **parts})
    return found
