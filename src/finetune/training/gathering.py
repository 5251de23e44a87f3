"""The common part of ZeRO and FSDP: a model is sharded among processes, and gathered to be saved."""

import math
from collections.abc import Callable

from transformers import PreTrainedModel

from finetune.core.console import say
from finetune.core.errors import Fault, ModelError
from finetune.core.launch import is_main_process, world_size
from finetune.core.types import Json
from finetune.distributed import fsdp, zero_config, zero_engine
from finetune.params.finetune import FinetuneParams
from finetune.training.callbacks import what_mends
from finetune.training.trainer import FinetuneTrainer

SAME_LOSS = {"32": 1e-4, "bf16": 3e-2, "16": 3e-2}  # relative: an engine computes in 16 bits what is saved in 32


def arguments(params: FinetuneParams, model: PreTrainedModel, deepspeed: Json | None) -> Json:
    """Return what the Trainer is told; nothing without an engine."""
    if deepspeed:
        return {"deepspeed": deepspeed}
    return fsdp.arguments(model) if params.apply_fsdp else {}


def sharding(params: FinetuneParams, deepspeed: Json | None) -> Json:
    """Return how the run is sharded: a checkpoint is of no use to one that is sharded in another way."""
    if params.apply_fsdp:
        return {"FSDP processes": world_size()}
    return zero_config.sharding(deepspeed, world_size())


def gathered_model(
    trainer: FinetuneTrainer, params: FinetuneParams, fresh: Callable[[], PreTrainedModel]
) -> PreTrainedModel | None:
    """Return, in the main process, the trained model gathered in 32 bits; every process must call it.

    What was trained goes into a `fresh` model, and has to give the same loss there: on the CPU, since the model may be
    too large for one GPU. Raises: ModelError if it doesn't.
    """
    if not params.apply_deepspeed and not params.apply_fsdp:
        model: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        return model
    before = trainer.sample_loss(trainer.model)
    if not math.isfinite(before):
        raise diverged(trainer)
    if params.apply_deepspeed:
        state = zero_engine.gather(trainer.accelerator.unwrap_model(trainer.model))
    else:
        state = trainer.accelerator.get_state_dict(trainer.model)
    zero_engine.forget()
    if not is_main_process():
        return None
    whole = fresh()
    if params.attn_implementation == "flash_attention_2":
        whole.set_attn_implementation("sdpa")  # FlashAttention has no kernel for a CPU, nor for 32 bits
    for name, parameter in whole.named_parameters():  # buffers follow from the config
        if parameter.requires_grad:  # frozen ones are those that were imported, in all their bits
            parameter.data.copy_(state[name])
    after = trainer.sample_loss(whole)
    if not math.isclose(before, after, rel_tol=SAME_LOSS[params.precision]):
        what = f"the model that was put together has a loss of {after:.4f}, and {before:.4f} while it was sharded"
        best = trainer.state.best_model_checkpoint
        fix = f"python {best}/zero_to_fp32.py {best} OUT puts the weights together; please report it"
        raise ModelError(Fault(what, fix=fix if params.apply_deepspeed else "--apply_fsdp false; please report it"))
    say(
        f"put together from {world_size()} processes: loss {after:.4f} on the first windows, {before:.4f} while sharded"
    )
    return whole


def diverged(trainer: FinetuneTrainer) -> ModelError:
    """Return the error of a run whose best weights are of no use."""
    return ModelError(Fault("training diverged: the best weights are not finite", fix=what_mends(trainer.args)))
