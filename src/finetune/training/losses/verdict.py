"""Which step has gone wrong, by what all processes have seen since the last look. No torch is needed for it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from finetune.core.types import Json

LONGEST, SHORTEST = 50, 20  # losses before a step that it is compared with
MOST = 3  # times that a run goes on without rows: after that it isn't they


class Seen(NamedTuple):
    """What one process has seen."""

    losses: list[tuple[int, float]]  # (step, share in its mean loss), for each batch
    norms: list[tuple[int, float]]  # (step, norm of its gradient)
    weights: bool  # are finite, as far as they were looked at


@dataclass(frozen=True)
class Wrong:
    """A step that has gone wrong."""

    step: int
    what: str
    by: str  # "loss", "gradient", "weights" or "spike"

    @property
    def suspects(self) -> tuple[int, ...]:
        """The steps whose rows may be why: of a loss that is large, the step before too, whose update it is measured
        after."""
        before = self.step - 1 if self.by in ("loss", "spike") else 0
        return (before, self.step) if before else (self.step,)


@dataclass
class Record:
    """What a run knows of its losses. It goes into checkpoints, so that a run that goes on decides alike."""

    before: list[float] = field(default_factory=list)  # the mean losses of the last steps
    left_out: list[int] = field(default_factory=list)  # steps whose rows are not learnt
    spikes: int = 0  # after which they were left out

    def stored(self) -> Json:
        """Return what a checkpoint holds."""
        return {"before": self.before, "left_out": self.left_out, "spikes": self.spikes}

    def resume(self, stored: Json) -> None:
        """Take up what a checkpoint holds; what was left out since it was written stays so."""
        self.before = [*stored["before"]]
        self.left_out = sorted({*self.left_out, *stored["left_out"]})
        self.spikes = max(self.spikes, stored["spikes"])

    def without(self, wrong: Wrong) -> "Record":
        """Return the record with which the run begins again, from a checkpoint or from the first weights."""
        return Record([], sorted({*self.left_out, *wrong.suspects}), self.spikes + 1)

    def judge(self, seen: Sequence[Seen], step: int, threshold: float) -> Wrong | None:
        """Return the first step that has gone wrong, up to this one, and remember the losses of those before it."""
        losses, norms = _summed(part.losses for part in seen), _summed(part.norms for part in seen)
        for at in sorted(losses.keys() | norms.keys()):
            loss, norm = losses.get(at, 0.0), norms.get(at, 0.0)
            if not math.isfinite(loss):
                return Wrong(at, f"the loss of step {at} is {loss}", "loss")
            if not math.isfinite(norm):
                return Wrong(at, f"the norm of the gradient of step {at} is {norm}", "gradient")
            if at in self.left_out:
                continue
            usual = median(self.before) if len(self.before) >= SHORTEST else 0.0
            if threshold and usual > 0 and loss > threshold * usual:
                times = f"{loss / usual:.1f} times the median of the {len(self.before)} steps before"
                return Wrong(at, f"the loss of step {at} is {loss:.4g}, {times}", "spike")
            self.before = [*self.before, loss][-LONGEST:]
        if not all(part.weights for part in seen):
            return Wrong(step, f"after step {step} there are weights that are not finite", "weights")
        return None


def _summed(parts: Iterable[list[tuple[int, float]]]) -> dict[int, float]:
    """Return the sum for each step, of all batches and processes."""
    found: dict[int, float] = {}
    for part in parts:
        for step, value in part:
            found[step] = found.get(step, 0.0) + value
    return found
