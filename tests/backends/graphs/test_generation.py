"""Graphs of OpenVINO write what PyTorch does, for each family, at numbers of texts and tokens that were no example."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.backends.graphs import conversion, generation, quantise
from finetune.core.errors import ModelError
from finetune.data.batches import Batch
from finetune.models.openvino import DECODER, ENCODER, IR, graph_files
from finetune.models.openvino_writer import Writer, open_writer
from finetune.models.stored import exportable
from finetune.tasks.generation.objective import objective
from finetune.tasks.generation.writing import by_generation
from tests.writers import how_to_write, random_writer, sources

compression = pytest.mark.compression
ANSWER = by_generation(objective())


@pytest.fixture
def openvino() -> Any:
    return pytest.importorskip("openvino", reason='pip install ".[compression]"')


def written(model: Any, folder: Path, change: Any = lambda graph: graph) -> Writer:
    import openvino

    folder.mkdir(exist_ok=True)
    for name, graph in generation.graphs_of(model).items():
        openvino.save_model(change(graph), folder / name, compress_to_fp16=False)
    model.config.save_pretrained(folder)
    return open_writer(folder, 1)


def passes(model: Any) -> list[Batch]:
    """Batches with what a decoder is given."""
    found = []
    for texts, tokens, steps in ((1, 1, 1), (1, 7, 2), (3, 13, 9), (5, 40, 30)):
        batch = {name: sources(texts, tokens)[name] for name in ("input_ids", "attention_mask")}
        if model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = torch.randint(5, 400, (texts, steps))
        found.append(batch)
    return found


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
    for texts, beams in ((4, 1), (1, 1), (4, 3)):
        with torch.no_grad():
            expected, found = (ANSWER(one, sources(texts, 13), how_to_write(model, beams)) for one in (model, writer))
        assert torch.equal(found["tokens"], expected["tokens"])
        assert len(expected["log_probability"].unique()) == texts


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
