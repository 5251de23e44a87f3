"""Estimate what a training run will take, counted on tensors without data and timed on one layer.

No weights are loaded. The model is built from its config on PyTorch's meta device and run on fake tensors, which have
shapes but no content, so that any architecture, LoRA included, is counted by what its own forward pass does. (On the
meta device itself some families would ask for values.)
"""

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from finetune.models.adapt import adaptations
from finetune.models.adapt.four_bit import frozen_layers
from finetune.models.loading import empty_model
from finetune.models.prediction import autocast_for
from finetune.params.finetune import FinetuneParams
from finetune.tasks.generation.writing import WritingState, generation_config
from finetune.tasks.task import State, Task

TIMED_SECONDS = 0.3
TIMED_TOKENS = 12
LOGITS = 2  # copies of them, to score what was written; measured 2.1 on a T5
# As the config of an encoder-decoder has them.
_DECODER_LAYERS, _ENCODER_LAYERS = ("decoder_layers", "num_decoder_layers"), ("encoder_layers", "num_layers")
WORKING_SPACE = 1.2  # with what kernels need besides; measured 1.1 to 1.3 on BERTs of 2 to 6 layers
AGAIN = 2.5  # what a layer keeps, for the layer that is computed again; measured 2.2 and 2.9
QUANTISED_BYTES = 0.52  # 4 bits, and 0.127 bits of constants (Dettmers et al. 2023, 3)
ADAM_BYTES, ADAFACTOR_BYTES = 8, 0  # state for each trained parameter; Adafactor's is rows plus columns


@dataclass(frozen=True)
class Cost:
    """The cost of one batch."""

    parameters: int
    trained: int
    in_4bit: int
    kept_bytes: int  # what the forward pass keeps for the backward pass
    flops: int  # of the forward pass


@dataclass(frozen=True)
class Estimate:
    """The estimate for one process; what Python and PyTorch take themselves is not counted."""

    state_bytes: int  # weights, gradients and optimizer state
    activation_bytes: int
    seconds: float  # of training and its evaluations, on this machine


@dataclass(frozen=True)
class Written:
    """The estimate for one evaluation of a model that writes, in one process, beside that of training."""

    seconds: float
    seconds_at_most: float  # where nothing ends by itself, as before a model has learnt to
    cache_bytes: int  # keys and values of the decoder, and logits


def cost(
    config: PreTrainedConfig, task: Task[State], params: FinetuneParams, batch_size: int, length: int, written: int = 0
) -> Cost:
    """Count one forward pass over (batch_size, length) tokens, in 32 bits; bf16 keeps about a tenth less.

    What a model writes is `written` tokens long, or `length` if that isn't known.
    """
    kept: dict[int, torch.UntypedStorage] = {}
    weights: set[int] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    plain = replace(params, finetune_in_4bit=False)  # quantisation needs content
    flash = params.attn_implementation == "flash_attention_2"  # which looks at the content; sdpa keeps about as much
    with torch.device("meta"):
        attention = "sdpa" if flash else params.attn_implementation
        model = adaptations.adapt(empty_model(config, task, attention), plain).model.train()
    adaptations.recompute(model, params)
    with FakeTensorMode():
        tensors = {name: _like(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        weights |= {tensor.untyped_storage()._cdata for tensor in tensors.values()}
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with FlopCounterMode(display=False) as counter, hooks:
            ids = torch.ones(batch_size, length, dtype=torch.long)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if config.is_encoder_decoder and "decoder_input_ids" in task.model.inputs:
                inputs["decoder_input_ids"] = torch.ones(batch_size, written or length, dtype=torch.long)
            functional_call(model, tensors, kwargs=inputs)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    in_4bit = sum(layer.weight.numel() for _, layer in frozen_layers(model)) if params.finetune_in_4bit else 0
    return Cost(
        in_4bit=in_4bit,
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, trained in sizes if trained),
        kept_bytes=sum(storage.nbytes() for storage in kept.values()),
        flops=counter.get_total_flops(),
    )


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)


def flops_per_second(width: int, batch_size: int, length: int, precision: str) -> float:
    """Return the operations per second, forward and backward, of a Transformer layer of this width on this machine."""
    device = "cuda" if on_gpu() else "cpu"
    layer = torch.nn.TransformerEncoderLayer(width, max(1, width // 64), 4 * width, batch_first=True, device=device)
    batch = torch.randn(batch_size, length, width, device=device)
    autocast = autocast_for("bf16" if precision == "16" else precision, device)  # fp16 is as fast

    def step() -> None:
        with autocast():
            output = layer(batch)
        output.float().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    with FlopCounterMode(display=False) as counter:
        step()  # this also warms up
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < TIMED_SECONDS:
        step()
        steps += 1
    return float(counter.get_total_flops() * steps / (time.perf_counter() - started))


def estimate(
    config: PreTrainedConfig,
    task: Task[State],
    params: FinetuneParams,
    windows: Sequence[int],
    train_windows: int,
    evaluated_windows: int,
    gold: Sequence[int] = (),
) -> Estimate:
    """Return the estimate, from the tokens of a sample of `windows` and how many are trained on and evaluated in all.

    `gold` are the tokens of their targets, where a model writes; the writing itself is not counted.

    Memory is that of the longest batch, time that of the mean one: batches are grouped by length.
    """
    layers = config.get_text_config().num_hidden_layers
    mean = round(sum(windows) / len(windows))
    batch, most_at_once = (windows_in_batch(params, length) for length in (mean, max(windows)))
    most, average = (max(gold), round(sum(gold) / len(gold))) if gold else (0, 0)
    largest = cost(config, task, params, most_at_once, max(windows), most)
    usual = cost(config, task, params, batch, mean, average)
    optimizer = ADAFACTOR_BYTES if params.optim == "adafactor" else ADAM_BYTES
    backward = 2 if usual.trained == usual.parameters else 1  # frozen weights need no gradient of their own
    backward += params.gradient_checkpointing  # it goes forward once more
    kept = largest.kept_bytes
    if params.gradient_checkpointing:  # one layer at a time is computed again, and its gradients besides
        whole = cost(config, task, replace(params, gradient_checkpointing=False), most_at_once, max(windows), most)
        kept += round(AGAIN * whole.kept_bytes / layers)
    rate = flops_per_second(config.get_text_config().hidden_size, batch, mean, params.precision)
    flops = usual.flops / batch * (train_windows * (1 + backward) + evaluated_windows)
    return Estimate(
        state_bytes=round(
            4 * (largest.parameters - largest.in_4bit)
            + (4 + optimizer) * largest.trained
            + QUANTISED_BYTES * largest.in_4bit
        ),
        activation_bytes=round(WORKING_SPACE * kept),
        seconds=flops / rate,
    )


def windows_in_batch(params: FinetuneParams, length: int) -> int:
    """Return how many windows of so many tokens a training batch has on each device."""
    if params.max_tokens_per_batch:
        return max(1, params.max_tokens_per_batch // length)
    return params.per_device_train_batch_size


def written(
    config: PreTrainedConfig,
    task: Task[State],
    state: WritingState,
    params: FinetuneParams,
    windows: Sequence[int],
    gold: Sequence[int],
    texts: int,
) -> Written:
    """Return what it takes to write `texts` texts, one token of each text of a batch after the other.

    A batch is written until its longest text ends. Its texts are of like length, as their sources are.
    """
    batch = min(params.per_device_eval_batch_size, max(1, texts))
    batches = -(-texts // batch)
    lengths = [length for length, _ in sorted(zip(gold, windows, strict=False), key=lambda pair: pair[1])]
    lengths = [min(length, state.max_target_length) for length in lengths] or [state.max_target_length]
    longest = [max(lengths[i : i + batch]) for i in range(0, len(lengths), batch)]
    mean = round(sum(windows) / len(windows))
    step = seconds_per_token(config, task, state, batch, mean, params.precision)
    width, layers = config.get_text_config().hidden_size, decoder_layers(config)
    tokens = state.max_target_length + max(windows)
    cache = 2 * 4 * layers * width * batch * state.num_beams * tokens
    logits = 4 * batch * config.get_text_config().vocab_size
    return Written(
        seconds=step * batches * sum(longest) / len(longest),
        seconds_at_most=step * batches * state.max_target_length,
        cache_bytes=cache + logits * LOGITS * max(state.max_target_length, state.num_beams),
    )


def decoder_layers(config: PreTrainedConfig) -> int:
    """Return the layers that are passed for each token that is written."""
    if not config.is_encoder_decoder:
        return int(config.get_text_config().num_hidden_layers)
    return max(config.to_dict().get(name) or 0 for name in _DECODER_LAYERS)


def seconds_per_token(
    config: PreTrainedConfig, task: Task[State], state: WritingState, batch: int, length: int, precision: str
) -> float:
    """Return the seconds in which `generate` writes one token of each text of a batch, on this machine.

    Measured with one and with two layers of random weights, from which those of all layers follow.
    """
    layers, device = decoder_layers(config), "cuda" if on_gpu() else "cpu"
    names = [name for name in (*_DECODER_LAYERS, *_ENCODER_LAYERS) if name in config.to_dict()]
    timed = []
    for count in (1, 2):
        thin = deepcopy(config)
        thin.update(dict.fromkeys(names if config.is_encoder_decoder else ["num_hidden_layers"], count))
        model = empty_model(thin, task).to_empty(device=device).eval()
        ids = torch.ones(batch, length, dtype=torch.long, device=device)
        with torch.no_grad(), autocast_for("bf16" if precision == "16" else precision, device)():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(-0.02, 0.02)
            told = generation_config(model, state)
            took = []
            for tokens in (1, 1 + TIMED_TOKENS):
                told.max_new_tokens = told.min_new_tokens = tokens
                started = time.perf_counter()
                model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=told)
                took.append(time.perf_counter() - started)
        timed.append(max(0.0, took[1] - took[0]) / TIMED_TOKENS)
    return timed[0] + (layers - 1) * max(0.0, timed[1] - timed[0])


def on_gpu() -> bool:
    return torch.cuda.is_available()


def available_bytes() -> int:
    """Return the bytes of memory that a process can still take: of the GPU if there is one, else of the machine."""
    if on_gpu():
        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)
