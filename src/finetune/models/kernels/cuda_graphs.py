"""Training passes as CUDA graphs: the host asks for a whole pass at once, not for one kernel after another.

A forward and backward pass of BERT-base are over a thousand kernels. A host takes longer to ask for them than a GPU to
compute a batch of usual size. A graph (Nguyen et al. 2021, Accelerating PyTorch with CUDA graphs) is recorded once
and asked for by one call, but it computes tensors of one size, at one place in memory: rows of tokens without padding
are extended to one of few lengths, by windows of their own that nobody looks at.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from finetune.core.console import say
from finetune.core.errors import first_line

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

    weights: dict[str, nn.Parameter]

    def __post_init__(self) -> None:
        self.sizes = [math.ceil(weight.numel() / ALIGNED) * ALIGNED for weight in self.weights.values()]
        first = next(iter(self.weights.values()))
        self.flat = torch.zeros(sum(self.sizes), device=first.device, dtype=first.dtype)
        self.views = self.views_of(self.flat)

    def views_of(self, flat: Tensor) -> list[Tensor]:
        """Return a tensor for each weight, which shows its part of `flat`."""
        parts = zip(self.weights.values(), flat.split(self.sizes), strict=True)
        return [part[: weight.numel()].view_as(weight) for weight, part in parts]


@dataclass
class Computed:
    """Outputs, and the weights that they were computed with."""

    outputs: Tensors
    weights: Mapping[str, Tensor]

    def differentiated(self, grad_outputs: Tensors) -> Tensors:
        """Return the gradients of the weights that the outputs depend on."""
        given = [grad_outputs[name] for name in self.outputs]
        found = torch.autograd.grad([*self.outputs.values()], [*self.weights.values()], given, allow_unused=True)
        return {name: gradient for name, gradient in zip(self.weights, found, strict=True) if gradient is not None}


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


class CudaGraphs:
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
                why = first_line(error.__context__ or error)  # what ended the recording, not that it has no end
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
        # Made here: what is made while a pass is recorded is made anew by each replay, with full determinism as NaN.
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        outputs, gradients = self._warm_up(inputs)
        grad_outputs = {name: torch.zeros_like(tensor) for name, tensor in outputs.items()}
        computed: list[Computed] = []  # with what autograd needs for the backward pass

        def forward() -> None:
            computed.append(self._computed(inputs))
            for name, tensor in computed[0].outputs.items():
                outputs[name].copy_(tensor.detach())

        def backward() -> None:
            found = computed.pop().differentiated(grad_outputs)
            torch._foreach_copy_(gradients.views, [found[name] for name in gradients.weights])

        with torch.enable_grad():
            replays = [self.record(run, self) for run in (forward, backward)]
        return Pass(inputs, outputs, grad_outputs, gradients, *replays)

    def _computed(self, inputs: Tensors) -> Computed:
        """Compute a row by the model.

        The weights are leaves of their own: the node of autograd that gathers a weight's gradient remembers the stream
        of whoever used it first, and a pass whose nodes are of another stream can't be recorded.
        """
        leaves = {
            n: weight.detach().requires_grad_() for n, weight in self.model.named_parameters() if weight.requires_grad
        }
        # FlashAttention needs no indices, but a row without them is that of a padded batch.
        given = {**inputs, "max_length_q": self.longest, "token_indices": inputs["input_ids"][0]}
        torch.clear_autocast_cache()  # of weights in 16 bits, which each pass has to make of those of its step
        outputs = functional_call(self.model, leaves, kwargs=given)
        torch.clear_autocast_cache()
        return Computed({name: tensor for name, tensor in outputs.items() if isinstance(tensor, Tensor)}, leaves)

    def _warm_up(self, inputs: Tensors) -> tuple[Tensors, Gradients]:
        """Let libraries make and load what they do once for such a row. Return where its results are to lie."""
        with same_draws(inputs), torch.enable_grad():
            done = self._computed(inputs)
            used = done.differentiated(done.outputs)
        if self.gradients is None:
            weights = dict(self.model.named_parameters())
            self.gradients = Gradients({name: weights[name] for name in used})
        return {name: torch.zeros_like(tensor) for name, tensor in done.outputs.items()}, self.gradients

    def _differs(self, recorded: Pass) -> str:
        """Return that the graphs give something else than the model; "" where they don't."""
        weights = recorded.gradients.weights
        ways: list[Callable[[], Computed]] = [
            lambda: self._computed(recorded.inputs),
            lambda: Computed(replayed(recorded), weights),
        ]
        found = []
        for by in ways:
            with same_draws(recorded.inputs), torch.enable_grad():
                done = by()
                same = {name: torch.full_like(tensor, tensor.numel() ** -0.5) for name, tensor in done.outputs.items()}
                gradients = [gradient.flatten() for gradient in done.differentiated(same).values()]
                found.append({**done.outputs, "gradients": torch.cat(gradients)})
        wrong = [name for name, tensor in found[0].items() if not _distance(found[1][name], tensor) <= NEAR]
        return f"{', '.join(wrong)} differ from the model's own" if wrong else ""

    def _give_up(self, why: str) -> None:
        self.fails = True
        self.passes.clear()
        self.gradients = None
        say(f"cuda_graphs: not used ({why})")


def replayed(recorded: Pass) -> Tensors:
    """Return the outputs for what its inputs hold, which autograd can differentiate."""
    found = Replay.apply(recorded, *recorded.gradients.weights.values())  # type: ignore[no-untyped-call]
    return dict(zip(recorded.outputs, found, strict=True))


def same_draws(inputs: Tensors) -> AbstractContextManager[None]:
    """Return in what to compute such that dropout draws what it would draw without, here and afterwards."""
    device = inputs["input_ids"].device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the norm of the difference over that of `other`."""
    one, other = one.detach().float(), other.detach().float()
    return float((one - other).norm() / other.norm().clamp(min=1e-12))


def record_on_gpu(run: Run, graphs: CudaGraphs) -> Run:
    """Return what computes anew, in the same tensors, what `run` does. All graphs share their memory for the rest.

    Raises: RuntimeError if it can't be recorded. What PyTorch leaves as if it still were is set back then: the stream,
    what draws for dropout, and where memory comes from (pytorch#180395).
    """
    if graphs.pool is None:
        graphs.pool = torch.cuda.graph_pool_handle()
    graph = torch.cuda.CUDAGraph()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    # Another thread may pin memory for a batch meanwhile.
    recording = torch.cuda.graph(graph, pool=graphs.pool, capture_error_mode="thread_local")
    try:
        with torch.cuda.stream(torch.cuda.current_stream()), recording:
            run()
    except RuntimeError:
        generator.graphsafe_set_state(before)
        with contextlib.suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), graphs.pool)
        raise
    replay: Run = graph.replay
    return replay
