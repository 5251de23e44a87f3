"""FSDP on CPUs, where a run is refused: accelerate is told that two processes on gloo are GPUs, and shards as there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForQuestionAnswering, BartConfig, BertConfig, T5Config

from finetune.distributed import fsdp
from finetune.models.facts import facts_of
from finetune.params.case import Case
from finetune.params.rules import errors
from tests.conftest import finetune_words
from tests.launching import launch, port, stopping
from tests.params.test_rules import finetune_params

STEP = """
import sys
from types import SimpleNamespace
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig, AutoModelForTokenClassification
from finetune.distributed import fsdp

torch.distributed.init_process_group("gloo")
sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
sizes |= {"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "n_embd": 32, "n_layer": 2}
sizes |= {"n_head": 2, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "num_key_value_heads": 2}
for family in sys.argv[1:]:
    config = AutoConfig.for_model(family, **sizes)
    model = AutoModelForTokenClassification.from_config(config)
    told = fsdp.arguments(model)["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy=told["auto_wrap_policy"], state_dict_type=told["state_dict_type"],
        reshard_after_forward=True, transformer_cls_names_to_wrap=told["transformer_layer_cls_to_wrap"],
        cpu_ram_efficient_loading=False,
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), torch_device_mesh=None, mixed_precision="no", is_main_process=True,
        parallelism_config=SimpleNamespace(fsdp_dim_names=["dp"]), device=torch.device("cpu"),
    )
    model = fsdp2_prepare_model(accelerator, model)
    ids = torch.randint(3, 90, (2, 8))
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.pow(2).sum().backward()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    whole = AutoModelForTokenClassification.from_config(config)
    if torch.distributed.get_rank() == 0:
        assert not [name for name, _ in whole.named_parameters() if name not in state], family
        print(family, flush=True)
"""
AS_GPUS = """
import torch
from accelerate import state
from accelerate.utils import DistributedType
from finetune.core.world import World

prepared = state.PartialState._prepare_backend

def as_gpus(self, *arguments, **options):
    backend, kind = prepared(self, *arguments, **options)
    return backend, DistributedType.MULTI_GPU if kind == DistributedType.MULTI_CPU else kind

def on_the_cpu(self):
    self.device = torch.device("cpu")

state.PartialState._prepare_backend, state.PartialState.set_device = as_gpus, on_the_cpu
World.has_gpu, World.gpus = lambda self: True, lambda self: 2
"""
# As precision 16 has one on GPUs: losses are scaled before the backward pass, and gradients back.
SCALED = """
from accelerate import Accelerator
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

made = Accelerator.__init__

def with_scaler(self, *arguments, **options):
    made(self, *arguments, **options)
    self.scaler = ShardedGradScaler(device="cpu")

Accelerator.__init__ = with_scaler
"""
RUN = "from finetune import run\nfrom finetune.core import process\nprocess.run_main(run.main)"
STEPS = {"max_steps": 6, "logging_strategy": "steps", "logging_steps": 1, "per_device_train_batch_size": 4}
FSDP = {"apply_fsdp": "true"}
LORA = {"apply_lora": "true", "lora_r": 4}
FAMILIES = ["bert", "roberta", "distilbert", "albert", "electra", "gpt2", "modernbert", "deberta-v2", "llama"]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.thorough
def test_a_step_of_each_family_and_its_whole_weights() -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", STEP, *FAMILIES],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said[0]
    assert [line for line in said[0].splitlines() if line in FAMILIES] == FAMILIES


def trained(prepared: Path, folder: Path, code: str, **given: Any) -> str:
    """What two processes say that run this code."""
    words = finetune_words(prepared, folder, learning_rate=1e-3, **STEPS, **given)
    launched = launch(folder, words, code=("-c", code))
    assert set(launched.codes(600)) == {0}, launched.said()
    return launched.said()


def steps(folder: Path, value: str) -> list[float]:
    """A value of each step of a run."""
    log = json.loads((folder / "pytorch" / "training.json").read_text())["log"]
    return [entry[value] for entry in log if value in entry]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.distributed
@pytest.mark.parametrize("given", [{}, {**LORA, "gradient_checkpointing": "true"}], ids=["all weights", "LoRA"])
def test_a_run_is_that_of_ddp(given: dict[str, Any], prepared: Path, tmp_path: Path) -> None:
    said = trained(prepared, tmp_path / "fsdp", AS_GPUS + RUN, **FSDP, **given)
    assert "put together from 2 processes" in said and "equal to the trained model on" in said
    trained(prepared, tmp_path / "ddp", RUN, **given)
    for value, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        sharded, whole = (steps(tmp_path / name, value) for name in ("fsdp", "ddp"))
        assert len(whole) == STEPS["max_steps"] and sharded == pytest.approx(whole, rel=tolerance)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.distributed
@pytest.mark.parametrize("code", [AS_GPUS, AS_GPUS + SCALED], ids=["", "with a scaler"])
def test_a_stopped_run_goes_on_bit_for_bit(code: str, prepared: Path, tmp_path: Path) -> None:
    trained(prepared, tmp_path / "whole", code + RUN, **FSDP)
    words = finetune_words(prepared, tmp_path / "stopped", learning_rate=1e-3, **STEPS, **FSDP)
    stopped = launch(tmp_path / "stopped", words, code=("-c", code + stopping(3)))
    assert set(stopped.codes(600)) == {9}, stopped.said()
    trained(prepared, tmp_path / "stopped", code + RUN, **FSDP, resume_from_checkpoint="true")
    one, two = (tmp_path / name / "pytorch" / "model.safetensors" for name in ("whole", "stopped"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.distributed
def test_qlora_of_two_processes(prepared: Path, tmp_path: Path) -> None:
    """With DDP: bitsandbytes computes in 4 bits on CPUs too."""
    code = "from finetune.core.world import World\nWorld.has_gpu, World.gpus = lambda self: True, lambda self: 2\n"
    said = trained(prepared, tmp_path, code + RUN, **LORA, finetune_in_4bit="true")
    assert "equal to the trained model on" in said


def test_layers_of_bert() -> None:
    model = AutoModelForQuestionAnswering.from_config(
        BertConfig(vocab_size=20, hidden_size=4, num_attention_heads=1, num_hidden_layers=1, intermediate_size=4)
    )
    assert fsdp.layers(model) == ["BertLayer"]
    assert errors(Case(finetune_params(apply_fsdp=True), known_model=facts_of(model))) == []


@pytest.mark.parametrize(
    "config",
    [
        T5Config(vocab_size=20, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=1, decoder_start_token_id=0),
        BartConfig(vocab_size=20, d_model=4, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
                   decoder_attention_heads=1, encoder_ffn_dim=4, decoder_ffn_dim=4),
    ],
    ids=["t5", "bart"],
)  # fmt: skip
def test_shared_weights_are_refused(config: object) -> None:
    model = AutoModelForQuestionAnswering.from_config(config)
    (error,) = errors(Case(finetune_params(apply_fsdp=True), known_model=facts_of(model)))
    assert "share weights" in str(error)
    assert errors(Case(finetune_params(), known_model=facts_of(model))) == []
