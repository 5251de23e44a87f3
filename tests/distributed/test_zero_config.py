"""What a DeepSpeed config may say, and what becomes of it."""

import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from finetune.core.errors import ParameterError, UnsupportedError
from finetune.distributed import zero_config, zero_schema
from finetune.params.case import Case
from finetune.params.finetune import QuestionAnsweringParams
from finetune.params.rules import notes

pytestmark = pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed: make test-distributed")
ADAMS = {"lr", "betas", "eps", "weight_decay"}
STEPS = {"warmup_num_steps", "total_num_steps"}
FOLDERS = {f.name: Path() for f in fields(QuestionAnsweringParams) if f.name.endswith(("_output", "_folder"))}


def params(**given: Any) -> QuestionAnsweringParams:
    return QuestionAnsweringParams(**{**FOLDERS, "apply_deepspeed": True, **given})


def merged(tmp_path: Path, config: Any, processes: int = 2, **given: Any) -> tuple[Any, Any, list[str]]:
    path = tmp_path / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    ran, used, said = zero_config.merge(params(deepspeed=path, **given), processes)
    return ran, used, [str(line) for line in said]


def unknown(tmp_path: Path, config: Any) -> list[str]:
    """What is said to be no key of DeepSpeed's."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    try:
        zero_schema.read(path)
    except ParameterError as error:
        return [fault.what for fault in error.faults if "has no key" in fault.what]
    return []


def test_every_key_that_deepspeed_reads_is_known(tmp_path: Path) -> None:
    """By the names in its source, at the top of a config, and by the fields of its model, in the block of ZeRO."""
    from deepspeed.runtime import config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    source = Path(config.__file__).read_text()
    names = re.findall(r"get_scalar_param\(\s*param_dict,\s*([A-Z_]+),", source)
    names += re.findall(r"\b([A-Z_]+) in param_dict(?!\[)", source)
    top = {vars(config)[name] for name in names}
    of_zero = {key for name, field in DeepSpeedZeroConfig.model_fields.items() for key in (name, field.alias or name)}
    assert len(top) > 20 and len(of_zero) > 40
    everything = {**dict.fromkeys(top, "?"), "zero_optimization": dict.fromkeys(of_zero, "?")}
    assert unknown(tmp_path, everything) == []
    assert len(unknown(tmp_path, {**everything, "gradient_cliping": "?"})) == 1


def test_auto_is_for_what_transformers_fills_in() -> None:
    """But for the steps between lines that DeepSpeed prints, which accelerate sets."""
    from accelerate.utils import dataclasses
    from transformers.integrations import deepspeed

    filled = re.findall(r'fill_(?:match|only)\(\s*"([^"]+)"', inspect.getsource(deepspeed))
    assert {*filled, "steps_per_print"} == zero_schema.AUTO
    assert 'self.deepspeed_config["steps_per_print"] = ' in inspect.getsource(dataclasses)


@pytest.mark.parametrize("stage", ["2", "3"])
def test_the_bundled_configs(stage: str) -> None:
    given = params(deepspeed_stage=stage)
    ran, config, said = zero_config.merge(given, 2)
    assert ran == given and said == [] and zero_schema.stage(config) == int(stage)
    assert "optimizer" not in config and "scheduler" not in config and not zero_schema.offloads(config)
    path = Path("configs") / "deepspeed" / f"zero{stage}.json"
    assert zero_schema.read(path) == json.loads(path.read_text())


def test_deepspeed_is_imported_for_a_config_of_ones_own_only(tmp_path: Path) -> None:
    """The other parameters are checked in an instant."""
    (tmp_path / "config.json").write_text('{"zero_optimization": {"stage": 2}}')
    script = f"""
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from finetune.distributed import zero_config
from finetune.params.finetune import QuestionAnsweringParams
folders = {{f.name: Path() for f in fields(QuestionAnsweringParams) if f.name.endswith(("_output", "_folder"))}}
own = {{"deepspeed": Path("{tmp_path}/config.json")}}
for given in (own, {{"apply_deepspeed": True}}, {{"apply_deepspeed": True, **own}}):
    zero_config.merge(QuestionAnsweringParams(**folders, **given), 1)
    print(*(name in sys.modules for name in ("torch", "pydantic", "deepspeed")))
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert [line for line in said.splitlines() if line.startswith(("True", "False"))] == [
        "False False False",
        "False False False",
        "True True True",
    ]


def test_without_deepspeed() -> None:
    given = params(apply_deepspeed=False, deepspeed=Path("config.json"), deepspeed_stage="3")
    assert zero_config.merge(given, 2) == (given, None, [])
    lines = notes(Case(given))
    assert "deepspeed config.json has no effect with apply_deepspeed false" in lines
    assert "deepspeed_stage 3 has no effect with apply_deepspeed false" in lines


def test_unknown_keys(tmp_path: Path) -> None:
    """All of them at once, each with the nearest name."""
    config = {
        "gradient_cliping": 1.0,
        "zero_optimization": {"stage": 2, "overlap_com": True, "offload_optimizer": {"devices": "cpu"}},
        "bf16": {"enable": True},
        "optimizer": {"typ": "AdamW"},
        "something": 1,
    }
    with pytest.raises(ParameterError) as raised:
        merged(tmp_path, config)
    said = str(raised.value)
    assert len(raised.value.faults) == 6 and str(tmp_path / "config.json") in said
    for wrong, right in {
        "gradient_cliping": "gradient_clipping",
        "zero_optimization.overlap_com": "overlap_comm",
        "zero_optimization.offload_optimizer.devices": "device",
        "bf16.enable": "enabled",
        "optimizer.typ": "type",
    }.items():
        assert f"DeepSpeed has no key '{wrong}'; did you mean {right}?" in said
    assert "DeepSpeed has no key 'something'\n" in said


@pytest.mark.parametrize("text", ["{", "[]", "", '"text"'])
def test_no_config_at_all(tmp_path: Path, text: str) -> None:
    with pytest.raises(ParameterError, match=r"config.json is not a JSON (file|object)"):
        merged(tmp_path, text)
    with pytest.raises(ParameterError, match=r"nowhere.json is not a JSON file"):
        zero_config.merge(params(deepspeed=tmp_path / "nowhere.json"), 1)


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"Duplicate keys.*'stage'"):
        merged(tmp_path, '{"zero_optimization": {"stage": 2, "stage": 3}}')


def test_every_fault_at_once(tmp_path: Path) -> None:
    config = {
        "zero_optimization": {"stage": 4, "reduce_bucket_size": 0, "offload_param": {"device": 1, "ratio": 0.5}},
        "fp16": {"loss_scale_window": 1.5, "min_loss_scale": True},
        "tensorboard": {"enabled": "no"},
        "flops_profiler": {"profile_step": "1"},
        "dump_state": 1,
        "optimizer": {"type": "sgd", "params": {"momentum": "0.9", "betas": [0.9, 0.99], "nesterov": 1}},
    }
    with pytest.raises(ParameterError) as raised:
        merged(tmp_path, config)
    assert {fault.where for fault in raised.value.faults} == {str(tmp_path / "config.json")}
    assert [fault.what for fault in raised.value.faults] == [
        "'zero_optimization.stage' is 4, not 0, 1, 2 or 3",
        "'zero_optimization.reduce_bucket_size' is 0, not greater than 0",
        "'zero_optimization.offload_param.device' is 1, not none, cpu or nvme",
        "DeepSpeed has no key 'zero_optimization.offload_param.ratio'",
        "'fp16.loss_scale_window' is 1.5, not a valid integer",
        "'fp16.min_loss_scale' is true, not a valid integer",
        "'tensorboard.enabled' is \"no\", not a valid boolean",
        "'flops_profiler.profile_step' is \"1\", not a valid number",
        "'dump_state' is 1, not a valid boolean",
        "'optimizer.params.momentum' is \"0.9\", not a valid number",
        "DeepSpeed has no key 'optimizer.params.betas'",
        "'optimizer.params.nesterov' is 1, not a valid boolean",
    ]


def test_what_both_say_side_by_side(tmp_path: Path) -> None:
    config = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "fp16": {"enabled": True, "loss_scale": 0},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 1},
    }
    given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "deepspeed_stage": "3"}
    ran, used, said = merged(tmp_path, config, **given)
    assert said == [
        "deepspeed_stage: 1 (the deepspeed config)",
        "deepspeed gradient_accumulation_steps: 2 (gradient_accumulation_steps wins over the config's 1)",
        "deepspeed gradient_clipping: 1.0 (max_grad_norm wins over the config's 0.5)",
        "deepspeed train_batch_size: 16 (what these give wins over the config's 64)",
        "deepspeed fp16.enabled: false (precision 32 wins over the config's true)",
    ]
    assert ran == params(deepspeed=tmp_path / "config.json", **given)
    assert used["gradient_clipping"] == "auto" and used["fp16"] == {"enabled": "auto", "loss_scale": 0}
    assert "deepspeed_stage 3 has no effect with deepspeed: the config says it" in notes(Case(ran))


def test_what_a_config_leaves_out_is_filled_in(tmp_path: Path) -> None:
    """DeepSpeed's own default for clipping is none."""
    _, used, said = merged(tmp_path, {"zero_optimization": {"stage": 2}})
    assert said == [] and used["gradient_clipping"] == "auto" and used["bf16"] == {"enabled": "auto"}
    assert used["zero_allow_untested_optimizer"] is True


def test_optimizer_and_scheduler_of_the_config(tmp_path: Path) -> None:
    config = {
        "zero_optimization": {"stage": 2},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 3e-4, "betas": [0.8, 0.99], "eps": "auto", "weight_decay": 0.1},
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"warmup_num_steps": 7, "warmup_max_lr": 3e-4, "total_num_steps": 900},
        },
    }
    ran, used, said = merged(tmp_path, config)
    assert said[0] == "optim: AdamW (the optimizer block of the deepspeed config wins)"
    assert said[1] == "lr_scheduler_type: WarmupDecayLR (the scheduler block of the deepspeed config wins)"
    assert "learning_rate: 0.0003 (the deepspeed config wins)" in said
    assert "adam_beta1: 0.8 (the deepspeed config wins)" in said
    assert (ran.learning_rate, ran.weight_decay, ran.warmup_steps) == (3e-4, 0.1, 7)
    assert (ran.adam_beta1, ran.adam_beta2) == (0.8, 0.99)
    assert any("biases and layer norms" in line for line in said)
    assert used["optimizer"]["params"].pop("torch_adam") is True  # nothing is compiled
    assert set(used["scheduler"]["params"].values()) == {"auto"} == {*map(str, used["optimizer"]["params"].values())}
    config["scheduler"]["params"]["warmup_max_lr"] = 1e-3
    with pytest.raises(ParameterError, match=r"two values for learning_rate: 0.0003 and 0.001"):
        merged(tmp_path, config)


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "filled"),
    [
        ({"type": "adamw"}, None, ADAMS),
        ({"type": "AdamW", "params": {"torch_adam": True, "weight_decay": 0.1}}, None, ADAMS),
        ({"type": "Lion", "params": {"lr": 1e-3}}, None, {"lr", "betas", "weight_decay"}),
        ({"type": "SGD", "params": {"momentum": 0.9}}, None, {"lr", "weight_decay"}),
        ({"type": "Adagrad", "params": {"fp32_optimizer_states": False}}, None, {"lr", "eps", "weight_decay"}),
        ({"type": "RMSprop", "params": {"alpha": 0.9}}, None, {"lr", "eps", "weight_decay"}),
        ({"type": "Adadelta"}, None, {"lr", "eps", "weight_decay"}),
        ({"type": "lamb", "params": {"max_coeff": 5}}, None, ADAMS),
        *(({"type": kind}, None, ADAMS) for kind in ("NAdam", "RAdam", "Adamax")),
        (None, {"type": "WarmupLR"}, {"warmup_min_lr", "warmup_max_lr", "warmup_num_steps"}),
        (None, {"type": "WarmupDecayLR", "params": {"warmup_min_lr": 1e-6}}, {"warmup_max_lr", *STEPS}),
        (None, {"type": "WarmupCosineLR", "params": {"cos_min_ratio": 0.1}}, STEPS),
    ],
)
def test_what_a_block_leaves_out_is_filled_in(tmp_path: Path, optimizer: Any, scheduler: Any, filled: set[str]) -> None:
    """DeepSpeed's own defaults are a rate of 1e-3, and a warm-up of 1000 steps."""
    blocks = {name: block for name, block in (("optimizer", optimizer), ("scheduler", scheduler)) if block}
    _, used, _ = merged(tmp_path, {"zero_optimization": {"stage": 2}, **blocks})
    (block,) = blocks
    given, values = blocks[block].get("params", {}), used[block]["params"]
    assert filled == {key for key, value in values.items() if value == "auto"}
    kept = given.keys() - {"lr", "weight_decay"}
    assert values.keys() >= given.keys() and all(values[key] == given[key] for key in kept)


def test_auto_where_deepspeed_has_a_default_of_its_own(tmp_path: Path) -> None:
    config = {"zero_optimization": {"stage": 2, "max_live_parameters": "auto"}, "fp16": {"loss_scale": "auto"}}
    assert merged(tmp_path, config)[2] == []


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"zero_optimization": {"stage": 0}}, "stage 0"),
        ({}, "stage 0"),
        ({"zero_optimization": {"stage": 2}, "amp": {"enabled": True}}, "'amp' of a deepspeed config"),
        ({"zero_optimization": {"stage": 2}, "nebula": {"enabled": True}}, "'nebula' of a deepspeed config"),
        ({"zero_optimization": {"stage": 2}, "scheduler": {"type": "OneCycle"}}, "the scheduler OneCycle"),
        ({"zero_optimization": {"stage": 2}, "scheduler": {"type": "WarmupLRR"}}, "the scheduler WarmupLRR"),
        ({"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamWW"}}, "the optimizer AdamWW"),
        (
            {"zero_optimization": {"stage": 2}, "optimizer": {"params": {}}},
            "the optimizer without a type",
        ),
    ],
)
def test_what_is_not_supported_of_a_config(tmp_path: Path, config: Any, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        merged(tmp_path, config)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"zero_optimization": True}, "'zero_optimization' is true, not an object"),
        ({"bf16": True, "zero_optimization": {"stage": 2}}, "'bf16' is true, not an object"),
        ({"optimizer": "AdamW"}, "'optimizer' is \"AdamW\", not an object"),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.9]}}}, "'optimizer.params.betas' as it is"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": "1e-4"}}},
            "'optimizer.params.lr' is \"1e-4\", not a valid number",
        ),
        ({"optimizer": {"type": "AdamW", "params": {"weigth_decay": 0}}}, "did you mean weight_decay?"),
        ({"zero_optimization": {"stage": "auto"}}, "'zero_optimization.stage' is auto, and nobody fills that in"),
        ({"zero_optimization": {"stage": "3"}}, "'zero_optimization.stage' is \"3\", not 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": 2.9}}, "'zero_optimization.stage' is 2.9, not"),
        ({"zero_optimization": {"stage": True}}, "'zero_optimization.stage' is true, not"),
        ({"gradient_predivide_factor": "auto"}, "is auto, and nobody fills that in"),
        ({"zero_optimization": {"offload_optimizer": {"device": "auto"}}}, "is auto, and nobody fills that in"),
        ({"zero_optimization": {"offload_optimizer": {"device": "gpu"}}}, 'is "gpu", not none, cpu or nvme'),
        (
            {"zero_optimization": {"overlap_comm": "yes"}},
            "'zero_optimization.overlap_comm' is \"yes\", not a valid boolean",
        ),
        ({"zero_optimization": {"reduce_bucket_size": "lots"}}, 'is "lots", not a valid integer'),
        ({"gradient_clipping": "x"}, "'gradient_clipping' is \"x\", not a valid number"),
        ({"zero_optimization": {"cpu_offload": True}}, 'fix: "offload_optimizer": {"device": "cpu"}'),
        ({"zero_optimization": {"cpu_offload_use_pin_memory": True}}, "fix: offload_param or offload_optimizer"),
        ({"zero_optimization": {"stage3_gather_fp16_weights_on_model_save": 1}}, 'fix: "gather_16bit_weights_on_m'),
        ({"bfloat16": {"enabled": True}}, 'an old name\n  where: CONFIG\n  fix: "bf16": {"enabled": true}'),
        ({"zero_optimization": {"offload_optimizer": "auto"}}, 'is "auto", not an object'),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 1.5}}}, "ratio' is 1.5, not less than or equal to 1"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"ratio": 0.5}}}, "Partial offloading only supported"),
        ({"zero_optimization": {"stage": 3, "compute_grad_norm": False}}, "only with ZeRO Stage 1 or 2"),
        ({"fp16": {"loss_scale": -1}}, "fp16.loss_scale must be >= 0"),
        ({"train_batch_size": 0}, "'train_batch_size' is 0, not greater than 0"),
        ({"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_max_lr": 1}}}, "no key 'scheduler.params.warmup_"),
        ({"scheduler": {"type": "warmuplr", "params": {"warmup_num_steps": 1.5}}}, "is 1.5, not a valid integer"),
        ({"optimizer": {"type": "Lamb", "params": {"max_grad_norm": 1.0}}}, "no key 'optimizer.params.max_grad_norm'"),
        ({"activation_checkpointing": {"partition_activation": True}}, "did you mean partition_activations?"),
    ],
)
def test_values_that_it_cannot_take(tmp_path: Path, config: Any, why: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(why.replace("CONFIG", str(tmp_path / "config.json")))):
        merged(tmp_path, config)


def test_values_that_it_can_take(tmp_path: Path) -> None:
    """Of more than one kind, or of another kind than the default."""
    config = {
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 5e8,
            "stage3_max_live_parameters": 1e9,
            "overlap_comm": False,
            "offload_param": {"device": "nvme", "nvme_path": "/local_nvme/"},
            "zenflow": {"select_interval": "auto", "update_interval": 4},
        },
        "fp16": {"loss_scale": 0, "initial_scale_power": 12},
        "gradient_clipping": 1,
        "steps_per_print": "auto",
        "timers": {"throughput": {"enabled": False}},
        "data_types": {"keep_in_fp32_modules": "auto"},
        "optimizer": {"type": "adamw", "params": {"betas": [0, 0.99], "weight_decay": 0, "torch_adam": True}},
    }
    assert merged(tmp_path, config)[1]["zero_optimization"] == config["zero_optimization"]


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"lr": -1}}}, "learning_rate -1 of the deepspeed config must be at"),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 1.5]}}}, "adam_beta2 1.5 of the deepspeed config"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": -5}}}, "warmup_steps -5 of the deepspeed"),
    ],
)
def test_values_that_a_parameter_could_not_have(tmp_path: Path, block: Any, why: str) -> None:
    with pytest.raises(ParameterError, match=why):
        merged(tmp_path, {"zero_optimization": {"stage": 2}, **block})


def test_null_counts_as_left_out(tmp_path: Path) -> None:
    config = {"zero_optimization": {"stage": 2, "offload_optimizer": None}, "optimizer": None, "fp16": None}
    _, used, said = merged(tmp_path, config)
    assert said == [] and "optimizer" not in used and not zero_schema.offloads(used)


def test_a_checkpoint_of_another_sharding() -> None:
    config = zero_config.merge(params(), 2)[1]
    assert (
        zero_config.sharding(config, 2) == zero_config.sharding(config, 2) != zero_config.sharding(config, 4)
        and zero_config.sharding(None, 4) == {}
    )
