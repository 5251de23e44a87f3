"""Decide how long windows are and how far they overlap, for every task that reads long rows in windows."""


def window_length(asked: int, longest: int) -> int:
    """Return the tokens of a window; -1 asks for the model's longest."""
    return longest if asked == -1 else min(asked, longest)


def fitting_stride(asked: int, room: int) -> int:
    """Return doc_stride in tokens, lowered where windows with `room` for tokens of the row would not move on."""
    return asked if asked < room else max(0, room // 4)


def stride_lines(asked: int, stride: int, length: int) -> list[str]:
    """Return a line that doc_stride was lowered, if it was."""
    if stride == asked:
        return []
    return [f"doc_stride: {stride} instead of {asked}, so that windows of {length} tokens move on"]
