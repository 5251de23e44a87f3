"""Graphs of OpenVINO write what PyTorch does, for each family, at numbers of texts and tokens that were no example."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.backends import runtimes
from finetune.backends.graphs import conversion, generation, quantise
from finetune.core.errors import ModelError
from finetune.data.batches import Batch
from finetune.models.openvino import DECODER, ENCODER, IR, graph_files
from finetune.models.stored import exportable
from finetune.models.writer import Writer, open_writer, writer_of
from finetune.tasks.generation.objective import objective
from finetune.tasks.generation.writing import by_generation, configure
from tests.writers import how_to_write, random_writer, sources

compression = pytest.mark.compression
ANSWER = by_generation(objective())


def written(model: Any, folder: Path, change: Any = lambda graph: graph) -> Writer:
    import openvino

    folder.mkdir(exist_ok=True)
    for name, part in generation.parts_of(model).items():
        graph = change(conversion.to_openvino(part))
        openvino.save_model(graph, folder / f"openvino_{name}.xml", compress_to_fp16=False)
    model.config.save_pretrained(folder)
    return open_writer(folder, 1)


def in_onnx(model: Any, folder: Path) -> tuple[Writer, list[Path]]:
    parts = generation.parts_of(model)
    files = [folder / f"{name}.onnx" for name in parts]
    for part, file in zip(parts.values(), files, strict=True):
        conversion.to_onnx(part, file)
    return writer_of(model.config, [runtimes.open_onnx(file, 1) for file in files]), files


def passes(model: Any) -> list[Batch]:
    """Batches with what a decoder is given."""
    found = []
    for texts, tokens, steps in ((1, 1, 1), (1, 7, 2), (3, 13, 9), (5, 40, 30)):
        batch = {name: sources(texts, tokens)[name] for name in ("input_ids", "attention_mask")}
        if model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = torch.randint(5, 400, (texts, steps))
        found.append(batch)
    return found


def same_texts(model: Any, writer: Writer) -> None:
    for texts, beams in ((4, 1), (1, 1), (4, 3)):
        state = how_to_write(model, beams)
        configure(model, state)  # as a model is loaded; most of these texts end at max_target_length
        with torch.no_grad():
            expected, found = (ANSWER(one, sources(texts, 13), state) for one in (model, writer))
        assert torch.equal(found["tokens"], expected["tokens"])
        assert len(expected["log_probability"].unique()) == texts


@compression
@pytest.mark.parametrize("family", exportable.WRITERS)
def test_openvino_writes_the_same(openvino: Any, family: str, tmp_path: Path) -> None:
    """In one pass and in steps; greedily and by beams, texts of other lengths together."""
    model = random_writer(family)
    attention = model.config._attn_implementation
    writer = written(model, tmp_path)
    assert {path.name for path in graph_files(tmp_path)} <= {path.name for path in tmp_path.iterdir()}
    assert model.config._attn_implementation == attention
    for one in (writer, partial(generation.in_steps, writer)):
        assert conversion.relative_distance(one, model, passes(model)) < conversion.WRITTEN_PARITY
    same_texts(model, writer)


LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "other layers and heads": ("bart", {"encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 4}),
    "scaled embeddings": ("mbart", {"scale_embedding": True, "decoder_layers": 1}),
    "words of its own": ("marian", {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 500}),
    "gated": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1}),
    "some layers slide": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "several ends": ("llama", {"eos_token_id": [1, 7], "attention_bias": True}),
    "scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
}


@compression
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_published_models(openvino: Any, layout: str, tmp_path: Path) -> None:
    family, values = LAYOUTS[layout]
    model = random_writer(family, **values)
    writer = written(model, tmp_path)
    steps = partial(generation.in_steps, writer)
    assert conversion.relative_distance(steps, model, passes(model)) < conversion.WRITTEN_PARITY
    same_texts(model, writer)


@compression
@pytest.mark.parametrize("family", exportable.WRITERS)
def test_onnx_runtime_writes_the_same(onnxruntime: Any, family: str, tmp_path: Path) -> None:
    model = random_writer(family)
    writer, files = in_onnx(model, tmp_path)
    for one in (writer, partial(generation.in_steps, writer)):
        assert conversion.relative_distance(one, model, passes(model)) < conversion.WRITTEN_PARITY
    same_texts(model, writer)
    assert not [file for file in files if b"site-packages" in file.read_bytes()]


@compression
@pytest.mark.parametrize("family", ["bart", "gpt2"])
def test_weights_in_int8_of_onnx_runtime(onnxruntime: Any, family: str, tmp_path: Path) -> None:
    model = random_writer(family)
    _, files = in_onnx(model, tmp_path)
    targets = [file.with_stem(f"{file.stem}_int8") for file in files]
    for file, target in zip(files, targets, strict=True):
        quantise.weights_by_onnxruntime(file, target)
    assert sum(file.stat().st_size for file in targets) < 0.7 * sum(file.stat().st_size for file in files)
    writer = writer_of(model.config, [runtimes.open_onnx(file, 1) for file in targets])
    batch = passes(model)[2]
    told = conversion.told_of(batch)
    with torch.no_grad():
        pair = [one(**batch)["logits"][told].flatten().numpy() for one in (writer, model)]
    assert 0.95 < np.corrcoef(*pair)[0, 1] < 0.999999


@compression
@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_tokens_beyond_a_sliding_window(openvino: Any, family: str, tmp_path: Path) -> None:
    """They aren't seen, in a prompt as in what is written behind it."""
    model, other = random_writer(family, sliding_window=6), random_writer(family)
    writer = written(model, tmp_path)
    steps = partial(generation.in_steps, writer)
    assert conversion.relative_distance(steps, model, passes(model)) < conversion.WRITTEN_PARITY
    assert conversion.relative_distance(steps, other, passes(model)) > 1e-2
    with torch.no_grad():
        expected, found = (ANSWER(one, sources(3, 13), how_to_write(model, 2)) for one in (model, writer))
    assert torch.equal(found["tokens"], expected["tokens"])


@compression
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_other_weights_are_noticed(openvino: Any, family: str, tmp_path: Path) -> None:
    """One matrix of one layer of the decoder, by as much as bf16 would move it."""
    model = random_writer(family)
    steps = partial(generation.in_steps, written(model, tmp_path))
    conversion.refuse_other_writing("OpenVINO", conversion.relative_distance(steps, model, passes(model)))
    with torch.no_grad():
        weights = [p for name, p in model.named_parameters() if "encoder.block" not in name and p.dim() > 1][-1]
        weights.copy_(weights.bfloat16().float())
    with pytest.raises(ModelError, match=r"OpenVINO is not the model that was trained\n.*% of their size"):
        conversion.refuse_other_writing("OpenVINO", conversion.relative_distance(steps, model, passes(model)))


@compression
def test_weights_in_int8_meet_numbers_of_32_bits(openvino: Any, tmp_path: Path) -> None:
    """Left to itself OpenVINO rounds these too where there is VNNI: a score would not be that of another machine."""
    written(random_writer("gpt2"), tmp_path)
    asked: list[Any] = []
    compile_model = openvino.Core.compile_model

    def noted(core: Any, *given: Any) -> Any:
        asked.append(compile_model(core, *given))
        return asked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino.Core, "compile_model", noted)
        open_writer(tmp_path, 1)
    assert int(asked[0].get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 0


@compression
@pytest.mark.parametrize(("family", "names"), [("bart", (ENCODER, DECODER)), ("llama", (IR,))])
def test_weights_in_int8(openvino: Any, family: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """Fewer bytes, and logits that go the same way."""
    pytest.importorskip("nncf", reason='pip install ".[compression]"')
    model = random_writer(family)
    sizes = []
    for name, change in (("full", lambda graph: graph), ("int8", quantise.weights_by_nncf)):
        writer = written(model, tmp_path / name, change)
        sizes.append(sum((tmp_path / name / graph).with_suffix(".bin").stat().st_size for graph in names))
    assert sizes[1] < 0.45 * sizes[0]
    batch = passes(model)[2]
    told = conversion.told_of(batch)
    with torch.no_grad():
        pair = [one(**batch)["logits"][told].flatten().numpy() for one in (writer, model)]
    assert 0.98 < np.corrcoef(*pair)[0, 1] < 0.999999
