"""The callbacks between the steps of training: a run says that it moves, returns memory, saves, and obeys a stop."""

from collections.abc import Sequence

from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from finetune.core.console import say
from finetune.core.errors import Fault, StoppedError
from finetune.data.batches import Batch
from finetune.data.sampler import Order
from finetune.distributed import preemption, process_group
from finetune.distributed.hangs import pulse
from finetune.models.adapt import fake_quantisation, pruning
from finetune.models.memory import return_freed_memory
from finetune.models.ort import engine as ort

RETURN_STEPS = 10  # at no cost that could be measured, 110 s for 112 s without


def evaluated_now(state: TrainerState, evaluation_steps: int) -> bool:
    """Return whether an evaluation follows the step that was just made."""
    return bool(state.global_step % evaluation_steps == 0 or state.global_step >= state.max_steps)


def what_mends(args: TrainingArguments) -> str:
    """Return what to type for a run that has diverged."""
    ways = ["a lower --learning_rate"]
    if not args.max_grad_norm:
        ways.append("--max_grad_norm 1")
    if args.fp16 or args.bf16:
        ways.append(f"--precision {'bf16' if args.fp16 else '32'}")
    return ", or ".join(ways)


class Heartbeat(TrainerCallback):
    """The callback that says that this process moves, at places that all processes reach."""

    def on_train_begin(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        pulse.reach()

    def on_substep_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        pulse.reach()

    def on_step_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        pulse.stepped(state.global_step, last=state.global_step >= state.max_steps)


class ReturnMemory(TrainerCallback):
    """The callback that gives back, now and then, what is free of the heap that is kept for speed (models/memory.py).

    Batches of other lengths leave gaps in it, so that it would grow to twice what a step needs.
    """

    def on_step_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        if state.global_step % RETURN_STEPS == 0:
            return_freed_memory()


class OrderOfEpoch(TrainerCallback):
    """The callback that tells the order of windows which epoch it is of.

    accelerate tells it too, but can't reach it where a run of several processes goes on in the middle of an epoch: the
    rows of the first epoch would come in place of those that are left of this one.
    """

    def __init__(self, order: Order) -> None:
        self.order = order

    def on_epoch_begin(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        self.order.set_epoch(int(state.epoch or 0))


class SaveEvery(TrainerCallback):
    """The callback that saves a checkpoint every so many steps, besides those of the best evaluations.

    Where an evaluation follows, the checkpoint waits for it: a run that goes on from a checkpoint goes on after it.
    """

    def __init__(self, save_steps: int, evaluation_steps: int) -> None:
        self.save_steps = save_steps
        self.evaluation_steps = evaluation_steps

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        due = state.global_step % self.save_steps == 0
        control.should_save |= due and not evaluated_now(state, self.evaluation_steps)


class Prune(TrainerCallback):
    """The callback that closes the gates of a model (models/adapt/pruning.py), more of them after each step.

    Scores are equal in all processes, as weights are, so each closes the same gates without asking the others.
    """

    def __init__(self, model: PreTrainedModel, ratio: float, method: str, length: float) -> None:
        self.gated = pruning.gated_layers(model)
        self.scores = pruning.scores_of(self.gated)
        self.ratio, self.method = ratio, method
        self.length = length  # of the training windows, on average, in tokens

    def finished(self, state: TrainerState) -> bool:
        """Return whether as much is closed as will be: no model before that is one to save."""
        return state.global_step >= pruning.begin_and_end(state.max_steps)[1]

    def on_pre_optimizer_step(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        if self.method == "taylor" and not self.finished(state):
            pruning.add_squared_gradients(self.gated)

    def on_step_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        first, last = pruning.begin_and_end(state.max_steps)
        if first < state.global_step <= last:
            ratio = pruning.ratio_at(state.global_step, state.max_steps, self.ratio)
            pruning.close(self.gated, ratio, self.method, self.length)
        if state.global_step == last:
            say(f"pruning: step {last}, all gates that will close are closed; the rest of the steps is for recovery")


class Calibrate(TrainerCallback):
    """The callback that sets the ranges of a model that is trained with rounding, unless a checkpoint has them.

    Where the model is pruned too, they are set again when the last gates have closed: what is behind them may have made
    a range wide. The batches are the same in all processes, and so are the ranges.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch], pruned: bool = False) -> None:
        self.model = model
        self.batches = batches
        self.pruned = pruned

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: object, **_: object) -> None:
        if state.global_step:
            return
        self._calibrate(args)
        windows = sum(len(batch["input_ids"]) for batch in self.batches)
        say(f"quantisation-aware training: ranges are those of {windows} windows of train, and go on learning")

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: object, **_: object) -> None:
        if self.pruned and state.global_step == pruning.begin_and_end(state.max_steps)[1]:
            self._calibrate(args)
            say("quantisation-aware training: ranges are set again, as all gates that will close are closed")

    def _calibrate(self, args: TrainingArguments) -> None:
        on_device = ({name: tensor.to(args.device) for name, tensor in batch.items()} for batch in self.batches)
        fake_quantisation.calibrate(self.model, on_device)


class SeedGraph(TrainerCallback):
    """The callback that seeds ONNX Runtime's dropout for each step: a resumed run draws as one without a stop."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: object, **_: object) -> None:
        ort.seed(args.seed + state.global_step)


class StopTogether(TrainerCallback):
    """The callback by which all processes save after the same step and leave, once any has received SIGTERM.

    Where an evaluation follows the step, the checkpoint waits for it, as in SaveEvery.
    """

    def __init__(self, evaluation_steps: int) -> None:
        self.evaluation_steps = evaluation_steps
        self.stopping = False

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.stopping = process_group.all_reduce_any(preemption.received())
        control.should_save |= self.stopping and not evaluated_now(state, self.evaluation_steps)

    def on_evaluate(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        self.stopping = process_group.all_reduce_any(preemption.received())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: object, **_: object) -> None:
        if self.stopping or process_group.all_reduce_any(preemption.received()):
            what = f"stopped by SIGTERM after step {state.global_step} of {state.max_steps}, which is saved"
            raise StoppedError(Fault(what, where=str(args.output_dir), fix=preemption.AGAIN))
