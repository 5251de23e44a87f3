"""Training speed of a BERT for questions on one GPU: padded windows, of like length, and without padding.

    python -m benchmarks.gpu [--shape BERT-base] [--batch 32] [--rounds 5] [--seconds 5] [--ways WAY ...] [--out FILE]

It needs torch and transformers, and this folder and src/ beside it: no package to install, no model, no data. Weights
are random, windows as long as those of SQuAD v1.1 (speed/lengths.json). In turn, each way trains for some seconds in
each round, in bf16 with dropout and fused AdamW; rates are medians. The peak is that of matrix products in the same
rounds.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch
from torch.nn import functional
from transformers import BertConfig, BertForQuestionAnswering

from benchmarks.scaling import LENGTHS, SHAPES, Shape
from finetune.data.batches import Batch, collate, collate_with_indices
from finetune.models.kernels import compiled, padding_free
from finetune.models.kernels.cuda_graphs import CudaGraphs
from finetune.tasks.answering import forward

torch.backends.cuda.enable_cudnn_sdp(False)  # as in all runs (finetune/models/prediction.py)
LONGEST = 384
GRAPHS, COMPILED = "CUDA graphs", "compiled"
WITHOUT_PADDING = (
    "no padding",
    f"no padding, {GRAPHS}",
    f"no padding, {COMPILED}",
    f"no padding, {COMPILED}, {GRAPHS}",
)
WAYS = ("padded to 384", "of like length, padded", *WITHOUT_PADDING)
PRODUCTS = "matrix products"
TINY = Shape("tiny", 2, 64)  # for a CPU
SIDE = 4096  # of the matrices
INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


@dataclass
class Measured:
    """What a way did in one round."""

    seconds: float
    windows: int = 0
    tokens: int = 0
    operations: float = 0.0


def batches(way: str, size: int, vocabulary: int) -> list[Batch]:
    """Return the batches of an epoch of 400 windows, on the host, in random order."""
    draws, on_gpu = random.Random(1), torch.cuda.is_available()
    grouped = way != WAYS[0]
    drawn = draws.sample(LENGTHS, len(LENGTHS) // size * size)
    lengths = sorted(drawn) if grouped else drawn
    found = []
    for first in range(0, len(lengths), size):
        longest = 0 if grouped else LONGEST
        windows = [window(length, longest, vocabulary, draws) for length in lengths[first : first + size]]
        batch = collate_with_indices(windows, {}) if way in WITHOUT_PADDING else collate(windows, {})
        found.append({name: tensor.pin_memory() if on_gpu else tensor for name, tensor in batch.items()})
    draws.shuffle(found)
    return found


def window(length: int, longest: int, vocabulary: int, draws: random.Random) -> dict[str, Any]:
    """Return a window of so many tokens, padded to the longest if that is longer."""
    padding, answer = max(0, longest - length), draws.randrange(length)
    return {
        "input_ids": [draws.randrange(vocabulary) for _ in range(length)] + [0] * padding,
        "attention_mask": [1] * length + [0] * padding,
        "token_type_ids": [0] * (length + padding),
        "start_positions": answer,
        "end_positions": answer,
    }


def steps(way: str, shape: Shape, size: int, device: str) -> Iterator[Measured]:
    """Yield, for each step, what it did; the caller says when it was enough."""
    sizes = {"hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.hidden // 64}
    config = BertConfig(vocab_size=shape.vocabulary, intermediate_size=4 * shape.hidden, **sizes)
    model = BertForQuestionAnswering(config).to(device).train()
    run: BertForQuestionAnswering | CudaGraphs = model
    if way in WITHOUT_PADDING:
        model.set_attn_implementation(padding_free.NAME)
    if COMPILED in way:
        compiled.compile_layers(model)
    if GRAPHS in way:
        if why := padding_free.why_no_flash(torch.bfloat16, 64) if device == "cuda" else "there is no GPU":
            raise RuntimeError(why)
        run = CudaGraphs(model, LONGEST)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    of_epoch = batches(way, size, shape.vocabulary)
    while True:
        for on_host in of_epoch:
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in on_host.items()}
            with torch.autocast(device, torch.bfloat16):
                if way in WITHOUT_PADDING:
                    outputs = padding_free.forward(run, batch, INPUTS, 0)
                else:
                    outputs = forward(model, batch, INPUTS)
            if isinstance(run, CudaGraphs) and run.fails:
                raise RuntimeError("they can't be recorded here")
            loss(outputs, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            lengths = on_host["attention_mask"].sum(1).tolist()
            yield Measured(0.0, len(lengths), sum(lengths), sum(shape.operations(length) for length in lengths))


def loss(outputs: Any, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of start and end, padding masked."""
    padded = batch["attention_mask"] == 0
    start, end = (outputs[name].float().masked_fill(padded, -torch.inf) for name in ("start_logits", "end_logits"))
    pairs = ((start, batch["start_positions"]), (end, batch["end_positions"]))
    return torch.stack([functional.cross_entropy(logits, gold) for logits, gold in pairs]).mean()


def products(device: str) -> Iterator[Measured]:
    """Yield, for each product of two matrices in bf16, its operations."""
    side = SIDE if device == "cuda" else 256
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    while True:
        torch.mm(left, right)
        yield Measured(0.0, operations=2.0 * side**3)


def round_of(work: Iterator[Measured], seconds: float, wait: Callable[[], None]) -> Measured:
    """Let a way work for so long, and return what it did."""
    for _ in range(3):  # allocator and kernels warm up
        next(work)
    wait()
    started, done = time.perf_counter(), Measured(0.0)
    while time.perf_counter() - started < seconds:
        for _ in range(5):  # then the device is waited for
            step = next(work)
            done.windows, done.tokens = done.windows + step.windows, done.tokens + step.tokens
            done.operations += step.operations
        wait()
    done.seconds = time.perf_counter() - started
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = {shape.name: shape for shape in (*SHAPES, TINY)}
    parser.add_argument("--shape", choices=shapes, default="BERT-base")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.manual_seed(1)
    works = {way: steps(way, shapes[asked.shape], asked.batch, device) for way in asked.ways}
    works[PRODUCTS] = products(device)
    for name in asked.ways:
        try:
            next(works[name])
        except RuntimeError as error:
            print(f"{name}: {error}")
            del works[name]
    found: dict[str, list[Measured]] = {name: [] for name in works}
    for number in range(asked.rounds):
        for name in [*works][number % len(works) :] + [*works][: number % len(works)]:
            found[name].append(round_of(works[name], asked.seconds, wait))
    report = reported(found, asked, torch.cuda.get_device_name() if device == "cuda" else "CPU")
    if asked.out:
        asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def reported(found: dict[str, list[Measured]], asked: argparse.Namespace, device: str) -> dict[str, Any]:
    """Print a line for each way, and return all figures."""

    def median(name: str, rate: Callable[[Measured], float]) -> float:
        return statistics.median(rate(done) / done.seconds for done in found[name])

    peak = median(PRODUCTS, lambda done: done.operations)
    print(f"{asked.shape}, {asked.batch} windows in a step, bf16, {device}, torch {torch.__version__}")
    print(f"{PRODUCTS:28} {peak / 1e12:.3g} TFLOP/s")
    ways = {}
    for name in (way for way in WAYS if way in found):
        operations = median(name, lambda done: done.operations)
        ways[name] = {
            "windows a second": round(median(name, lambda done: done.windows), 1),
            "tokens a second": round(median(name, lambda done: done.tokens)),
            "TFLOP/s": round(operations / 1e12, 3),
            "of the peak": round(operations / peak, 3),
        }
        print(f"{name:28} {', '.join(f'{value:,} {what}' for what, value in ways[name].items())}")
    rounds = {name: [done.windows / done.seconds for done in found[name]] for name in ways}
    where = {"device": device, "torch": torch.__version__, "shape": asked.shape, "batch": asked.batch}
    return {**where, "peak": peak, "ways": ways, "windows a second in each round": rounds}


if __name__ == "__main__":
    main()
