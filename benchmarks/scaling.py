"""What training on several GPUs should reach, on paper: computing by the model's shape, talking by its weights.

    python -m benchmarks.scaling [--share 0.4] [--batch 32] [--network 400]

Nothing is measured: the share of the peak is an assumption, and so is that what is sent during the backward pass hides
behind it. Windows are as long as those of SQuAD v1.1 (speed/lengths.json), without padding. Machines are as Azure's
ND H100 v5: 8 GPUs with 989 TFLOP/s in bf16 and 450 GB/s each way among them. What 8 GPUs send in rings passes from one
machine to the next through all of its network: 400 GB/s there, 10 GB/s for an Ethernet of 80 Gb/s.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LENGTHS: list[int] = json.loads(Path(__file__).with_name("speed").joinpath("lengths.json").read_text())[
    "question_answering"
]
PEAK, LINKS = 989e12, 450e9  # operations a second, and bytes that a GPU sends to others of its machine
GPUS = (1, 8, 16, 32)
ON_A_MACHINE = 8
BACKWARD = 2 / 3  # of the computing of a step


@dataclass(frozen=True)
class Shape:
    """A BERT: its weights that multiply are those of layers, 12 x hidden x hidden in each."""

    name: str
    layers: int
    hidden: int
    vocabulary: int = 30_522

    @property
    def of_layers(self) -> int:
        return 12 * self.layers * self.hidden**2

    @property
    def weights(self) -> int:
        return self.of_layers + (self.vocabulary + 512) * self.hidden

    def operations(self, tokens: int) -> float:
        """Return those of a window, forward and backward, as benchmarks/speed counts them."""
        return 6.0 * (self.of_layers * tokens + 2 * self.layers * self.hidden * tokens**2)


SHAPES = (Shape("MiniLM", 6, 384), Shape("BERT-base", 12, 768), Shape("BERT-large", 24, 1024))

# Bytes that each GPU sends in a step for each weight, but for (n - 1) / n: DDP reduces gradients in 32 bits, which are
# scattered and gathered; ZeRO-2 in bf16 scatters gradients and gathers weights; ZeRO-3 gathers weights twice.
ENGINES = {"DDP": 4 + 4, "ZeRO-2": 2 + 2, "ZeRO-3": 2 + 2 + 2}


def rate(shape: Shape, gpus: int, engine: str, batch: int, share: float, network: float) -> float:
    """Return windows a second, with `batch` of them in a step on each GPU, which reaches a share of its peak.

    `network` is what a machine sends to others, in bytes a second.
    """
    computing = batch * mean([shape.operations(tokens) for tokens in LENGTHS]) / (share * PEAK)
    sent = shape.weights * ENGINES[engine] * (gpus - 1) / gpus
    talking = sent / (LINKS if gpus <= ON_A_MACHINE else min(LINKS, network))
    waiting = max(0.0, talking - BACKWARD * computing)
    return gpus * batch / (computing + waiting)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(batch: int, share: float, network: float) -> str:
    """Return windows a second as Markdown, and of what the GPUs would reach alone."""
    lines = [f"| model | GPUs | {' | '.join(ENGINES)} |", f"| --- | --- |{' --- |' * len(ENGINES)}"]
    for shape in SHAPES:
        for gpus in GPUS:
            rates = [rate(shape, gpus, engine, batch, share, network) for engine in ENGINES]
            alone = gpus * rate(shape, 1, "DDP", batch, share, network)
            cells = [f"{found:,.0f} ({found / alone:.0%})" for found in rates]
            lines.append(f"| {shape.name} | {gpus} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__)
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that a GPU reaches")
    parser.add_argument("--batch", type=int, default=32, help="windows in a step, on each GPU")
    parser.add_argument("--network", type=float, default=400.0, help="GB/s that a machine sends to others")
    given = parser.parse_args()
    print(table(given.batch, given.share, given.network * 1e9))


if __name__ == "__main__":
    main()
