"""The callback that looks at losses, gradients and weights between steps."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.core.console import some
from finetune.core.errors import Fault, ModelError
from finetune.core.types import Json
from finetune.data.batches import Batch
from finetune.distributed import process_group
from finetune.training.callbacks import evaluated_now, what_mends
from finetune.training.losses.verdict import MOST, Record, Seen, Wrong

WATCH_STEPS = 10  # between two looks: each waits for the device
STORED = "losses"  # the name of the record in the state of the Trainer


class Noted(NamedTuple):
    """A batch, and its share in the mean loss of the step that it is of."""

    step: int
    loss: Tensor  # ()
    tokens: Tensor  # (B, L)


class Spiked(Exception):
    """A step whose rows the run goes on without, by the record that it begins again with."""

    def __init__(self, what: str, record: Record) -> None:
        super().__init__(what)
        self.record = record


class WatchLoss(TrainerCallback):
    """The callback that ends a run, or begins it anew, before a checkpoint holds weights that are lost.

    What it looks at stays on the device, and is read every few steps, and before a checkpoint or an evaluation. The
    main process judges for all, by the first step that is wrong on any. With a `threshold` the run goes on without its
    rows.
    """

    def __init__(
        self,
        evaluation_steps: int,
        tokenizer: PreTrainedTokenizerFast,
        threshold: float = 0.0,
        may_leave_out: bool = True,
    ) -> None:
        self.evaluation_steps = evaluation_steps
        self.tokenizer = tokenizer
        self.threshold = threshold
        self.may_leave_out = may_leave_out  # rows, if there were a threshold: it can be offered
        self.record = Record()
        self.noted: list[Noted] = []
        self.norms: list[tuple[int, Tensor]] = []

    def note(self, step: int, share: Tensor, batch: Batch) -> None:
        """Keep the share of a batch in the mean loss of its step, (), and its tokens (B, L)."""
        self.noted.append(Noted(step, share.detach(), batch["input_ids"]))

    def note_norm(self, step: int, norm: Tensor) -> None:
        """Keep the norm of the gradient of a step, (), which is the same on all processes."""
        self.norms.append((step, _whole(norm.detach())))

    def leaves_out(self, step: int) -> bool:
        return step in self.record.left_out

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: object,
    ) -> None:
        soon = control.should_save or evaluated_now(state, self.evaluation_steps)
        if not soon and state.global_step % WATCH_STEPS:
            return
        seen = process_group.gather_to_main(self._seen(model if soon else None))
        wrong: Wrong | None = process_group.broadcast_from_main(
            lambda: self.record.judge(seen, state.global_step, self.threshold)
        )
        if wrong:
            self._give_up(wrong, what_mends(args))
        self.noted, self.norms = [], []
        stored: Json = state.stateful_callbacks  # type: ignore[assignment]  # a dict, whatever its annotation says
        stored[STORED] = self.record.stored()

    def _seen(self, model: nn.Module | None) -> Seen:
        """Return what this process has to tell, with whether the weights are finite if there is a model to look at."""
        losses = _read([noted.loss for noted in self.noted])
        norms = _read([norm for _, norm in self.norms])
        trained = [p for p in model.parameters() if p.requires_grad] if model is not None else []
        return Seen(
            [(noted.step, loss) for noted, loss in zip(self.noted, losses, strict=True)],
            [(step, norm) for (step, _), norm in zip(self.norms, norms, strict=True)],
            all(_read([torch.isfinite(_own(p)).all() for p in trained])),
        )

    def _give_up(self, wrong: Wrong, fix: str) -> None:
        """Raise Spiked where the run may go on without the rows of the step, else ModelError that names them."""
        texts = process_group.gather_to_main(self._texts(wrong))
        rows = process_group.broadcast_from_main(lambda: some([repr(text) for own in texts for text in own]))
        record = process_group.broadcast_from_main(lambda: self.record)
        if self.threshold and record.spikes < MOST:
            steps = " and ".join(map(str, wrong.suspects))
            raise Spiked(f"{wrong.what}; rows of steps {steps} are left out, {rows} in the last", record.without(wrong))
        why = "a loss or a gradient is larger than its numbers can hold; the checkpoints are from before"
        offered = "; or --loss_spike_threshold 5 --resume_from_checkpoint true, to go on without these rows"
        if self.threshold:
            why = f"{MOST} times the rows of such a step were left out: it isn't they"
        elif self.may_leave_out:
            fix += offered
        raise ModelError(Fault(f"training diverged: {wrong.what}", where=f"the batch of {rows}", why=why, fix=fix))

    def _texts(self, wrong: Wrong) -> list[str]:
        """Return the texts of this process' windows of the step; of a loss that isn't finite, those of its batch."""
        of_step = [noted for noted in self.noted if noted.step == wrong.step]
        if wrong.by == "loss":
            of_step = [noted for noted in of_step if not torch.isfinite(noted.loss)]
        return [
            text for noted in of_step for text in self.tokenizer.batch_decode(noted.tokens, skip_special_tokens=True)
        ]


def _own(weight: Tensor) -> Tensor:
    """Return the shard of a weight that this process has, where FSDP shards it."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _read(scalars: list[Tensor]) -> list[float]:
    """Return numbers that lie on the device, in one go."""
    return torch.stack([scalar.float() for scalar in scalars]).tolist() if scalars else []
