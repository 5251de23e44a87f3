"""Training passes as CUDA graphs: the host asks for a whole pass at once, not for one kernel after another.

A forward and backward pass of BERT-base are some two thousand kernels. A host takes longer to ask for them than a GPU
to compute a batch of usual size. A graph (Ng, Fatica, Malaya: CUDA graphs, 2019) is recorded once and asked for by one
call, but it computes tensors of one size, at one place in memory: rows of tokens without padding are extended to one
of few lengths, by windows of their own that nobody looks at.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from finetune.core.console import say
from finetune.core.errors import first_line
from finetune.models.memory import out_of_memory

PARTS = 8  # lengths between two powers of two: a row is extended by an eighth at most
ALIGNED = 64  # numbers: each gradient begins where vector instructions can
NEAR = 5e-2  # of the norm, in 16 bits: products may be computed in another order
Run = Callable[[], None]
Tensors = dict[str, Tensor]


def length_of_row(tokens: int) -> int:
    """Return how many tokens a row of so many is extended to."""
    step = max(1, (1 << tokens.bit_length() - 1) // PARTS)
    return math.ceil(tokens / step) * step


def extended(row: dict[str, Any], longest: int) -> Tensors:
    """Return the inputs of a row (1, T), extended; those of `padding_free.forward`, as tensors alone.

    What is added is windows of at most `longest` tokens, all 0. Windows are a power of two; those that there aren't
    have no tokens.
    """
    tokens, begins = row["input_ids"].shape[1], row["cu_seq_lens_q"]
    length, windows = length_of_row(tokens), 1 << (len(begins) - 2).bit_length()
    most_added = math.ceil(length / PARTS / longest) + 1
    ends = torch.arange(1, most_added + 1, device=begins.device, dtype=begins.dtype) * longest + tokens
    found = {name: functional.pad(tensor, (0, length - tokens)) for name, tensor in row.items() if _is_row(tensor)}
    begins = functional.pad(begins, (0, windows + 1 - len(begins)), value=tokens)
    return {**found, "cu_seq_lens_q": torch.cat([begins, ends.clamp(max=length)])}


def _is_row(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2


@dataclass
class Gradients:
    """The gradients of all weights, at one place for all graphs."""

    weights: list[nn.Parameter]

    def __post_init__(self) -> None:
        sizes = [math.ceil(weight.numel() / ALIGNED) * ALIGNED for weight in self.weights]
        self.ends = torch.tensor(sizes).cumsum(0).tolist()
        first = self.weights[0]
        self.flat = torch.zeros(self.ends[-1], device=first.device, dtype=first.dtype)
        self.views = self.views_of(self.flat)

    def views_of(self, flat: Tensor) -> list[Tensor]:
        """Return a tensor for each weight, which shows its part of `flat`."""
        begins = [0, *self.ends[:-1]]
        parts = zip(self.weights, begins, strict=True)
        return [flat[begin : begin + weight.numel()].view_as(weight) for weight, begin in parts]


@dataclass
class Pass:
    """The forward and the backward pass of rows of one length. `forward` and `backward` compute, in these tensors."""

    inputs: Tensors
    outputs: Tensors
    grad_outputs: Tensors
    gradients: Gradients
    forward: Run
    backward: Run


class Replay(torch.autograd.Function):
    """The outputs of a pass, and the gradients of the weights, for autograd."""

    @staticmethod
    def forward(ctx: Any, recorded: Pass, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        recorded.forward()
        return tuple(tensor.clone() for tensor in recorded.outputs.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        recorded: Pass = ctx.recorded
        for static, given in zip(recorded.grad_outputs.values(), grad_outputs, strict=True):
            static.copy_(given)
        recorded.backward()
        # A copy, since autograd keeps what it is given as the gradient of a weight: it may be added to, and clipped.
        return None, *recorded.gradients.views_of(recorded.gradients.flat.clone())


class Graphs:
    """A model that is called like the model, in training steps alone, and computes by graphs.

    The first one is compared with the model itself, with the same dropout: where it fails, or differs, a line says
    why, and the model computes all batches. `record` makes a graph of what a function does.
    """

    def __init__(self, model: nn.Module, longest: int, record: Callable[[Run, Any], Run] | None = None) -> None:
        self.model = model
        self.longest = longest
        self.record = record or record_on_gpu
        self.passes: dict[tuple[int, int], Pass] = {}
        self.gradients: Gradients | None = None
        self.pool: Any = None
        self.fails = False

    def __call__(self, **row: Any) -> ModelOutput:
        """Return the outputs (1, T, ...) of a row, as `padding_free.forward` gives it."""
        if self.fails:
            outputs: ModelOutput = self.model(**row)
            return outputs
        inputs = extended(row, self.longest)
        key = (inputs["input_ids"].shape[1], len(inputs["cu_seq_lens_q"]))
        if key not in self.passes:
            try:
                self.passes[key] = self._recorded(inputs)
                why = self._differs(self.passes[key]) if len(self.passes) == 1 else ""
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                why = first_line(error)
            if why:
                self._give_up(why)
                return self(**row)
        recorded = self.passes[key]
        for name, tensor in inputs.items():
            recorded.inputs[name].copy_(tensor)
        tokens = row["input_ids"].shape[1]
        return ModelOutput({name: tensor[:, :tokens] for name, tensor in replayed(recorded).items()})

    def _recorded(self, inputs: Tensors) -> Pass:
        """Record the passes of rows like this one."""
        if self.gradients is None:
            self.gradients = Gradients([weight for weight in self.model.parameters() if weight.requires_grad])
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        outputs: Tensors = {}
        grad_outputs: Tensors = {}
        computed: Tensors = {}  # with what autograd needs for the backward pass
        gradients = self.gradients

        def forward() -> None:
            torch.clear_autocast_cache()  # of weights in 16 bits, which each pass has to make of those of its step
            computed.update(self._outputs(inputs))
            torch.clear_autocast_cache()
            for name, tensor in computed.items():
                outputs.setdefault(name, torch.empty_like(tensor)).copy_(tensor.detach())

        def backward() -> None:
            for name, tensor in computed.items():
                grad_outputs.setdefault(name, torch.empty_like(tensor))
            found = differentiated(computed, grad_outputs, gradients.weights)
            torch._foreach_copy_(gradients.views, found)
            computed.clear()

        self._warm_up(inputs)
        with torch.enable_grad():
            replays = [self.record(run, self) for run in (forward, backward)]
        return Pass(inputs, outputs, grad_outputs, gradients, *replays)

    def _outputs(self, inputs: Tensors) -> Tensors:
        # FlashAttention needs no indices, but a row without them is that of a padded batch.
        indices = inputs["input_ids"][0]
        outputs = self.model(**inputs, max_length_q=self.longest, token_indices=indices)
        return {name: tensor for name, tensor in outputs.items() if isinstance(tensor, Tensor)}

    def _warm_up(self, inputs: Tensors) -> None:
        """Let libraries make and load what they do once for such a row, which can't be recorded."""
        with same_draws(inputs), torch.enable_grad():
            outputs = self._outputs(inputs)
            differentiated(outputs, outputs, self.gradients.weights if self.gradients else [])

    def _differs(self, recorded: Pass) -> str:
        """Return that the graphs give something else than the model; "" where they don't."""
        weights = recorded.gradients.weights
        ways: list[Callable[[], Tensors]] = [lambda: self._outputs(recorded.inputs), lambda: replayed(recorded)]
        found = []
        for by in ways:
            with same_draws(recorded.inputs), torch.enable_grad():
                outputs = by()
                ones = {name: torch.ones_like(tensor) for name, tensor in outputs.items()}
                gradients = torch.cat([gradient.flatten() for gradient in differentiated(outputs, ones, weights)])
                found.append({**outputs, "gradients": gradients})
        wrong = [name for name, tensor in found[0].items() if _distance(found[1][name], tensor) > NEAR]
        return f"{', '.join(wrong)} differ from the model's own" if wrong else ""

    def _give_up(self, why: str) -> None:
        self.fails = True
        self.passes.clear()
        self.gradients = None
        say(f"padding_free: passes are not CUDA graphs ({why}); the host asks for each kernel")


def replayed(recorded: Pass) -> Tensors:
    """Return the outputs for what its inputs hold, which autograd can differentiate."""
    found = Replay.apply(recorded, *recorded.gradients.weights)  # type: ignore[no-untyped-call]
    return dict(zip(recorded.outputs, found, strict=True))


def same_draws(inputs: Tensors) -> AbstractContextManager[None]:
    """Return in what to compute such that dropout draws what it would draw without, here and afterwards."""
    device = inputs["input_ids"].device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def differentiated(outputs: Tensors, grad_outputs: Tensors, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of the weights; 0 for one that the outputs don't depend on."""
    given = [grad_outputs[name] for name in outputs]
    found = torch.autograd.grad([*outputs.values()], weights, given, allow_unused=True, materialize_grads=True)
    return list(found)


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the norm of the difference over that of `other`."""
    one, other = one.detach().float(), other.detach().float()
    return float((one - other).norm() / other.norm().clamp(min=1e-12))


def record_on_gpu(run: Run, graphs: Graphs) -> Run:
    """Return what computes anew, in the same tensors, what `run` does. All graphs share their memory for the rest.

    Raises: RuntimeError if it can't be recorded. What draws for dropout is set back then: it takes itself for recorded.
    """
    if graphs.pool is None:
        graphs.pool = torch.cuda.graph_pool_handle()
    graph = torch.cuda.CUDAGraph()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    try:
        # Another thread may copy a batch to the GPU meanwhile.
        with torch.cuda.graph(graph, pool=graphs.pool, capture_error_mode="thread_local"):
            run()
    except RuntimeError:
        generator.graphsafe_set_state(before)
        raise
    replay: Run = graph.replay
    return replay
