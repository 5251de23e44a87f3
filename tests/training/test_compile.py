"""torch_compile, in a process of its own: what it compiles would stay in this one."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from torch._dynamo.utils import counters
from torch._inductor.exc import InvalidCxxCompiler

from finetune import run
from tests.conftest import build_tiny_model, finetune_words, prepare
from tests.forking import Forks

COMPILED = """
import sys
from finetune import run
run.main(sys.argv[1:])
from torch._dynamo.utils import counters
print("compiled", counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
@pytest.mark.thorough
def test_compiled(forks: Forks, tmp_path: Path) -> None:
    """Without dropout, whose random numbers are others when compiled."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("torch.compile needs a C++ compiler")
    (tmp_path / "tiny").mkdir()
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tiny = build_tiny_model(tmp_path / "tiny", num_hidden_layers=1, **dropout)
    prepared = prepare(tmp_path, tiny, "token_classification", (24, 3, 3))
    given = {"max_steps": 3, "per_device_train_batch_size": 8, "logging_strategy": "steps", "logging_steps": 1}
    given |= {"learning_rate": 1e-3}
    words = {name: finetune_words(prepared, tmp_path / name, **given, torch_compile=name) for name in ("true", "false")}
    ran = subprocess.run([forks.python, "-c", COMPILED, *words["true"]], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    graphs = re.search(r"^compiled (\d+)", ran.stdout, re.MULTILINE)
    assert graphs and int(graphs[1]) > 0
    before = counters["stats"]["unique_graphs"]
    run.main(words["false"])
    assert counters["stats"]["unique_graphs"] == before
    compiled, plain = (losses(tmp_path / name) for name in ("true", "false"))
    assert len(compiled) == 3 and compiled == pytest.approx(plain, abs=1e-4)


def losses(folder: Path) -> list[float]:
    log = json.loads((folder / "pytorch" / "training.json").read_text())["log"]
    return [entry["loss"] for entry in log if "loss" in entry]
