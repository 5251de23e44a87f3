"""How fast models that write are in PyTorch and in OpenVINO: random weights of real sizes, 32 tokens for each text.

    .venv/bin/pip install ".[compression]" -c constraints.txt
    .venv/bin/python benchmarks/writers.py [THREADS] [Marian-32] [Marian-400] [GPT-2-128]

A Marian of 6 + 6 layers x 512 with 58,101 words, as those that translate, from 32 and from 400 tokens; a GPT-2 of 12
layers x 768, behind prompts of 128. All write 32 tokens, greedily, one text alone and eight together, in turns;
medians.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import openvino
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, GPT2Config, MarianConfig
from transformers.modeling_outputs import BaseModelOutput

from finetune.backends import runtimes
from finetune.backends.graphs import conversion, generation, quantise
from finetune.models.writer import open_writer, writer_of

WRITTEN, ROUNDS = 32, 5
MARIAN = MarianConfig(
    d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8, decoder_attention_heads=8,
    encoder_ffn_dim=2048, decoder_ffn_dim=2048, vocab_size=58101, pad_token_id=58100, decoder_start_token_id=58100,
)  # fmt: skip
MODELS = {"Marian-32": (MARIAN, 32), "Marian-400": (MARIAN, 400), "GPT-2-128": (GPT2Config(), 128)}


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    chosen = sys.argv[2:] or list(MODELS)
    print("model      backend            alone: ms   tokens/s   eight: tokens/s   MB")
    for name, (config, tokens) in ((name, MODELS[name]) for name in chosen):
        torch.manual_seed(0)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_config(config).eval()
        model.generation_config = GenerationConfig()  # not the family's own, by which each text would end
        with tempfile.TemporaryDirectory() as temporary:
            found = {"PyTorch FP32": (model, 4 * model.num_parameters() / 1e6)}
            found |= converted(model, Path(temporary), threads)
            backends, sizes = ({backend: one[i] for backend, one in found.items()} for i in (0, 1))
            seconds = {count: times(backends, torch.randint(5, 50_000, (count, tokens))) for count in (1, 8)}
        for backend in backends:
            alone, eight = seconds[1][backend], seconds[8][backend]
            print(
                f"{name:10} {backend:18} {1000 * alone:9.0f} {WRITTEN / alone:10.0f} {8 * WRITTEN / eight:17.0f} "
                f"{sizes[backend]:6.0f}",
                flush=True,
            )


def converted(model: Any, folder: Path, threads: int) -> dict[str, tuple[Any, float]]:
    """Return the model in other runtimes, in 32 bits and with weights in INT8, and the megabytes of each."""
    parts = generation.parts_of(model)
    graphs = {name: conversion.to_openvino(part) for name, part in parts.items()}
    found = {}
    for name in ("OpenVINO FP32", "OpenVINO INT8"):
        (folder / name).mkdir()
        model.config.save_pretrained(folder / name)
        for graph_name, graph in graphs.items():
            made = quantise.weights_by_nncf(graph) if name.endswith("INT8") else graph
            openvino.save_model(made, folder / name / f"openvino_{graph_name}.xml", compress_to_fp16=False)
        found[name] = open_writer(folder / name, threads), megabytes((folder / name).glob("*.bin"))
    files = {
        name: [folder / f"{part}{kind}.onnx" for part in parts] for name, kind in (("FP32", ""), ("INT8", "_int8"))
    }
    for part, file, target in zip(parts.values(), *files.values(), strict=True):
        conversion.to_onnx(part, file)
        quantise.weights_by_onnxruntime(file, target)
    for name, of_name in files.items():
        opened = [runtimes.open_onnx(file, threads) for file in of_name]
        found[f"ONNX Runtime {name}"] = writer_of(model.config, opened), megabytes(of_name)
    return found


def megabytes(files: Iterable[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 1e6


@torch.no_grad()
def times(backends: dict[str, Any], ids: torch.Tensor) -> dict[str, float]:
    """Return the median seconds in which each backend writes behind these ids (B, L); all write the same in 32 bits."""
    how = GenerationConfig(
        max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False, use_cache=True,
        decoder_start_token_id=58100, pad_token_id=1, eos_token_id=0,
    )  # fmt: skip
    taken: dict[str, list[float]] = {name: [] for name in backends}
    written = {}
    for _ in range(ROUNDS + 1):
        for name, model in backends.items():
            started = time.perf_counter()
            written[name] = write(model, ids, how)
            taken[name].append(time.perf_counter() - started)
    assert torch.equal(written["PyTorch FP32"], written["OpenVINO FP32"])
    return {name: statistics.median(all_of[1:]) for name, all_of in taken.items()}


def write(model: Any, ids: torch.Tensor, how: GenerationConfig) -> torch.Tensor:
    """Return what is written; an encoder-decoder reads first, as in `tasks.generation.writing`."""
    mask = torch.ones_like(ids)
    given = {"attention_mask": mask, "generation_config": how}
    if model.config.is_encoder_decoder:
        outputs = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :1])
        given["encoder_outputs"] = BaseModelOutput(outputs["encoder_last_hidden_state"])
    else:
        given["input_ids"] = ids
    written: torch.Tensor = model.generate(**given)
    return written


if __name__ == "__main__":
    main()
