"""Make TrainingArguments and callbacks of the parameters, and list every value that is not what its parameter says."""

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from finetune.core.launch import world_size
from finetune.core.types import Json
from finetune.models.adapt.adaptations import RECOMPUTE
from finetune.models.kernels import attention as cpu_kernels
from finetune.models.kernels import padding_free
from finetune.params.finetune import FinetuneParams
from finetune.params.provenance import Derived
from finetune.training.schedule import Schedule
from finetune.training.tracking import MlflowMetrics, Progress

# The fused kernel computes the same step in one pass over the weights. The Trainer keeps weight decay off biases and
# the weights of norms.
OPTIMIZERS = {"adamw_hf": "adamw_torch_fused", "adamw_torch": "adamw_torch_fused", "adafactor": "adafactor"}


def scheduler_kwargs(params: FinetuneParams) -> Json:
    """Return the arguments of a scheduler; two have any."""
    own: dict[str, Json] = {
        "cosine_with_restarts": {"num_cycles": params.lr_scheduler_cycles},
        "polynomial": {"power": params.lr_scheduler_power, "lr_end": 0.0},
    }
    return own.get(params.lr_scheduler_type, {})


def training_arguments(params: FinetuneParams, steps: Schedule, engine: Json | None = None) -> TrainingArguments:
    """Return what the Trainer is told. Batches, loss, evaluation, and when checkpoints come and go are ours.

    `engine` is a DeepSpeed config or what FSDP needs.
    """
    args = TrainingArguments(
        output_dir=str(params.pytorch_model_folder),
        num_train_epochs=params.num_train_epochs,
        max_steps=params.max_steps if params.max_steps > 0 else -1,
        per_device_train_batch_size=params.per_device_train_batch_size,
        per_device_eval_batch_size=params.per_device_eval_batch_size,
        gradient_accumulation_steps=params.gradient_accumulation_steps,
        optim=OPTIMIZERS[params.optim],
        learning_rate=params.learning_rate,
        warmup_steps=params.warmup_steps,
        weight_decay=params.weight_decay,
        adam_beta1=params.adam_beta1,
        adam_beta2=params.adam_beta2,
        adam_epsilon=params.adam_epsilon,
        max_grad_norm=params.max_grad_norm,
        lr_scheduler_type=params.lr_scheduler_type,
        lr_scheduler_kwargs=scheduler_kwargs(params),
        fp16=params.precision == "16",
        bf16=params.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=params.seed,
        full_determinism=params.enable_full_determinism,
        torch_compile=params.torch_compile,
        gradient_checkpointing=params.gradient_checkpointing,
        gradient_checkpointing_kwargs=RECOMPUTE,
        **(engine or {}),
        accelerator_config={"non_blocking": True},  # a batch moves to the GPU while the step before is computed
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=True,  # some models have weights that no forward pass uses
        dataloader_num_workers=params.dataloader_num_workers,
        eval_strategy=params.evaluation_strategy,
        eval_steps=steps.evaluation_steps,
        save_strategy=params.evaluation_strategy,
        save_steps=steps.evaluation_steps,
        logging_strategy=params.logging_strategy,
        logging_steps=params.logging_steps,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{params.metric_for_best_model}",
        greater_is_better=params.metric_for_best_model != "loss",
        restore_callback_states_from_checkpoint=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    if args.n_gpu > 1:
        args._n_gpu = 1  # DataParallel would split a batch behind the loss's back
    return args


def callbacks(params: FinetuneParams, main_metric: str) -> list[TrainerCallback]:
    """Return the callbacks that show progress, track metrics and stop early."""
    stopping = EarlyStoppingCallback(params.early_stopping_patience, params.early_stopping_threshold)
    return [Progress(main_metric), MlflowMetrics(), *([stopping] if params.apply_early_stopping else [])]


def derived(
    params: FinetuneParams, asked: FinetuneParams, steps: Schedule, attention: str, own_optimizer: bool = False
) -> list[Derived]:
    """Return every value that is not what its parameter says, with the reason.

    `params` is what runs; its batch may be smaller than asked. `attention` is what the model computes it with; with an
    `own_optimizer`, a DeepSpeed config brings one.
    """
    lower = params.metric_for_best_model == "loss"
    found = [
        Derived(
            "best model",
            f"{'lowest' if lower else 'highest'} {params.metric_for_best_model}",
            "direction of the metric",
        )
    ]
    if OPTIMIZERS[params.optim] != params.optim and not own_optimizer:
        reason = "AdamW in one kernel; biases and layer norms have no weight decay"
        found.append(Derived("optim", OPTIMIZERS[params.optim], reason))
    if params.per_device_train_batch_size != asked.per_device_train_batch_size:
        reason = "auto_find_batch_size: more did not fit into memory"
        found.append(Derived("per_device_train_batch_size", params.per_device_train_batch_size, reason))
    if params.gradient_accumulation_steps != asked.gradient_accumulation_steps:
        reason = f"keep_global_batch_size: a step keeps its {steps.global_batch} windows"
        found.append(Derived("gradient_accumulation_steps", params.gradient_accumulation_steps, reason))
    if params.max_steps > 0:
        reason = f"max_steps {params.max_steps}, and an epoch has {steps.steps_per_epoch}"
        found.append(Derived("num_train_epochs", round(steps.total_steps / steps.steps_per_epoch, 2), reason))
    if params.evaluation_strategy == "steps" and params.evaluation_steps_interval:
        reason = f"{params.evaluation_steps_interval:g} of {steps.steps_per_epoch} steps in an epoch"
        found.append(Derived("eval_steps", steps.evaluation_steps, reason))
    gpus = torch.cuda.device_count()
    if gpus > 1 and world_size() == 1:
        found.append(Derived("GPUs", 1, f"one process of {gpus} visible; torchrun --nproc-per-node {gpus} uses all"))
    if params.torch_compile and params.precision == "32" and torch.cuda.is_available():
        reason = "transformers turns TF32 on where it compiles: products keep 10 bits of 23"
        found.append(Derived("precision of matrix products", "TF32", reason))
    if attention == cpu_kernels.NAME:
        reason = "faster in training, with dropout of the same distribution; evaluation computes it with sdpa"
        found.append(Derived("attn_implementation", attention, reason))
    elif attention == padding_free.NAME:
        reason = "layers compute no padding; evaluation pads, and computes it with sdpa"
        found.append(Derived("attn_implementation", attention, reason))
    elif attention != params.attn_implementation:
        reason = "the kind that ONNX Runtime trains" if params.apply_ort else "what transformers takes for this model"
        found.append(Derived("attn_implementation", attention, reason))
    return found
