"""Every parameter of every component, once. No torch here, so that --help is instant.

A group is a frozen dataclass; a component inherits its groups, in the order shown to users. The first line of a
group's docstring is its heading. Names, types and defaults are those of the published components.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from finetune.errors import Fault, ParameterError, UnsupportedError
from finetune.schema import param, port, to_text

CPU_INSTANCE, GPU_INSTANCE = "Standard_D12_v2", "Standard_NC24ads_A100_v4"

SchedulerName = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
SCHEDULERS: tuple[str, ...] = get_args(SchedulerName)
PresetName = Literal[
    "none",
    "bert-base",
    "bert-large",
    "roberta-base",
    "roberta-large",
    "albert-large",
    "albert-xxl",
    "distilbert",
    "llama-2-13b",
]


@dataclass(frozen=True, kw_only=True)
class ModelImportParams:
    """Model import."""

    huggingface_id: str | None = param(
        None,
        "Hugging Face model id, such as bert-base-uncased. Used if no path is given; a local folder is read without the network.",
    )
    pytorch_model_path: Path | None = port(
        "custom_model",
        "A Hugging Face model folder, or pytorch_model_folder of an earlier run. Wins over the others.",
        optional=True,
    )
    mlflow_model_path: Path | None = port(
        "mlflow_model",
        "An MLflow model folder: its weights, config and tokenizer are copied, none of its code is run. Wins over huggingface_id.",
        optional=True,
    )
    output_dir: Path = port("uri_folder", "The model folder and model_selector_args.json.", output=True)


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """Data."""

    train_file_path: Path | None = port(
        "uri_file",
        "Training rows: jsonl, json, csv, tsv, parquet, or CoNLL columns as conll, conllu, bio, iob or txt; each also .gz.",
        optional=True,
    )
    validation_file_path: Path | None = port(
        "uri_file",
        "Validation rows. Where validation and test are both missing, training rows are split 80/10/10; where one is missing, it gets 20% of them.",
        optional=True,
    )
    test_file_path: Path | None = port("uri_file", "Test rows.", optional=True)
    train_mltable_path: Path | None = port(
        "mltable", "Training rows as an MLTable folder. Wins over train_file_path.", optional=True
    )
    validation_mltable_path: Path | None = port(
        "mltable", "Validation rows as an MLTable folder. Wins over validation_file_path.", optional=True
    )
    test_mltable_path: Path | None = port(
        "mltable", "Test rows as an MLTable folder. Wins over test_file_path.", optional=True
    )
    dataset_name: str | None = param(
        None,
        "A data set of the Hugging Face hub, or a local folder that datasets can load. Used where no training file is given.",
    )
    dataset_config_name: str | None = param(None, "The configuration of dataset_name.")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Encoding."""

    batch_size: int = param(1000, "Rows tokenized at a time.", min=1)
    max_seq_length: int = param(-1, "Tokens in one window. -1 means the model's true maximum.", min=-1)
    pad_to_max_length: bool = param(
        False, "Pad every window to max_seq_length. false pads each batch to its longest window, which is much faster."
    )
    max_train_samples: int = param(-1, "Use this many training rows. -1 means all.", min=-1)
    max_eval_samples: int = param(-1, "Use this many rows of validation and of test. -1 means all.", min=-1)
    max_dropped_fraction: float = param(
        0.1, "End with an error if a larger share of the rows of a split has to be dropped.", min=0, max=1
    )


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringColumns:
    """Columns."""

    question_key: str = param("question", "Column of the question.")
    context_key: str = param("context", "Column of the text that holds the answer.")
    answers_key: str = param("answers", "Column of the answers: an object, or the same as JSON text.")
    answer_start_key: str = param("answer_start", "Key inside the answers for the character offsets.")
    answer_text_key: str = param("text", "Key inside the answers for the texts.")


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringDecoding:
    """Windows and decoding."""

    doc_stride: int = param(128, "Tokens that two neighbouring windows of a long context share.", min=0)
    n_best_size: int = param(20, "Spans kept for each question.", min=1)
    max_answer_length_in_tokens: int = param(30, "Longest answer that is predicted, in tokens.", min=1)


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringPreprocessParams(QuestionAnsweringColumns, QuestionAnsweringDecoding, DataFiles, Encoding):
    """Folders."""

    model_selector_output: Path = port("uri_folder", "Output of model import.")
    output_dir: Path = port("uri_folder", "Encoded splits, their rows, the tokenizer and preprocess.json.", output=True)


@dataclass(frozen=True, kw_only=True)
class TokenClassificationColumns:
    """Columns."""

    token_key: str = param("tokens", "Column of the words: a list, or the same as JSON or Python text.")
    tag_key: str = param("ner_tags", "Column of the tags, one for each word: a list, or the same as text.")


@dataclass(frozen=True, kw_only=True)
class TokenClassificationDecoding:
    """Windows."""

    doc_stride: int = param(64, "Tokens that two neighbouring windows of a long row share.", min=0)


@dataclass(frozen=True, kw_only=True)
class TokenClassificationPreprocessParams(TokenClassificationColumns, TokenClassificationDecoding, DataFiles, Encoding):
    """Folders."""

    model_selector_output: Path = port("uri_folder", "Output of model import.")
    output_dir: Path = port("uri_folder", "Encoded splits, their rows, the tokenizer and preprocess.json.", output=True)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Preset."""

    preset: PresetName = param(
        "none",
        "Values recommended for a model on SQuAD, in place of defaults: learning_rate, num_train_epochs, both batch sizes, precision bf16. What is away from its default wins.",
    )


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA."""

    apply_lora: bool = param(False, "Train low-rank adapters and the head; all other weights stay frozen.")
    merge_lora_weights: bool = param(True, "Merge the adapters into the model before it is saved.")
    lora_alpha: int = param(128, "Scale of the adapters.", min=1)
    lora_r: int = param(8, "Rank of the adapters.", min=1)
    lora_dropout: float = param(0.0, "Dropout before the adapters.", min=0, max=1)
    lora_type: Literal["lora", "dora", "rslora"] = param(
        "lora", "lora; dora, with trained magnitudes besides; rslora, scaled by lora_alpha / sqrt(lora_r)."
    )
    finetune_in_4bit: bool = param(
        False, "Hold the frozen weights in 4 bits while adapters are trained (QLoRA). Needs an NVIDIA GPU."
    )


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Training."""

    num_train_epochs: int = param(1, "Passes over the training rows.", min=1)
    max_steps: int = param(
        -1, "If positive, the number of optimizer steps; num_train_epochs then has no effect.", min=-1
    )
    per_device_train_batch_size: int = param(1, "Training windows on each device at a time.", min=1)
    per_device_eval_batch_size: int = param(1, "Validation windows on each device at a time.", min=1)
    auto_find_batch_size: bool = param(
        False, "Where memory runs out, halve per_device_train_batch_size and start again from the first weights."
    )
    keep_global_batch_size: bool = param(
        False,
        "With auto_find_batch_size: raise gradient_accumulation_steps as the batch shrinks, so that a step keeps its windows.",
    )


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimizer."""

    optim: Literal["adamw_hf", "adamw_torch", "adafactor"] = param(
        "adamw_hf",
        "Optimizer. adamw_hf means AdamW without weight decay on biases and layer norms, as adamw_torch does.",
    )
    learning_rate: float = param(2e-5, "Learning rate after warm-up.", min=0)
    warmup_steps: int = param(0, "Steps in which the learning rate rises from 0.", min=0)
    weight_decay: float = param(0.0, "Weight decay on all weights but biases and layer norms.", min=0)
    adam_beta1: float = param(0.9, "First beta of AdamW, below 1.", min=0, max=0.999999)
    adam_beta2: float = param(0.999, "Second beta of AdamW, below 1.", min=0, max=0.999999)
    adam_epsilon: float = param(1e-8, "Epsilon of AdamW.", min=0)
    gradient_accumulation_steps: int = param(1, "Batches whose gradients are added up before a step.", min=1)
    lr_scheduler_type: SchedulerName = param("linear", "Course of the learning rate after warm-up.")
    lr_scheduler_cycles: int = param(
        1,
        "With cosine_with_restarts: the number of times the learning rate falls to 0. 1 is the same as cosine.",
        min=1,
    )
    lr_scheduler_power: float = param(
        1.0, "With polynomial: the power by which the learning rate falls to 0. 1 is the same as linear.", min=0.000001
    )


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Precision and reproducibility."""

    precision: Literal["32", "16", "bf16"] = param(
        "32", "Numbers used in the forward pass: 32 bits, 16 (fp16 with loss scaling, GPUs only), or bf16."
    )
    seed: int = param(42, "Seed of the new head, of dropout and of the order of rows.", min=0, max=2**32 - 1)
    enable_full_determinism: bool = param(
        False, "Allow only deterministic kernels: the same weights bit for bit from run to run."
    )
    dataloader_num_workers: int = param(0, "Processes that prepare batches. 0 means the main process.", min=0)
    ignore_mismatched_sizes: bool = param(
        True, "Give weights of another size a fresh start, and say so; false makes them an error."
    )
    max_grad_norm: float = param(1.0, "Clip the gradient to this norm. 0 turns clipping off.", min=0)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Memory and speed."""

    gradient_checkpointing: bool = param(
        False, "Compute each layer again in the backward pass instead of keeping what it computed: less memory, slower."
    )
    torch_compile: bool = param(
        False, "Compile the model with torch.compile. It takes minutes at first, and on CPUs seldom pays."
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = param(
        "auto",
        "Attention: plain PyTorch, its fused kernels, or FlashAttention (GPUs only). auto takes the model's own.",
    )
    throughput_warmup_steps: int = param(
        0, "Steps at the beginning that are left out of the speed that is reported.", min=0
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation and logging."""

    evaluation_strategy: Literal["epoch", "steps"] = param("epoch", "When to evaluate and save a checkpoint.")
    evaluation_steps_interval: float = param(
        0.0,
        "With strategy steps: evaluate after this fraction of an epoch, in whole steps. Wins over eval_steps if not 0.",
        min=0,
        max=1,
    )
    eval_steps: int = param(500, "With strategy steps: evaluate after this many steps, at least 1.")
    logging_strategy: Literal["epoch", "steps"] = param("epoch", "When to log the training loss.")
    logging_steps: int = param(500, "With strategy steps: log after this many steps.", min=1)
    metric_for_best_model: Literal["loss"] = param(
        "loss", "Metric by which the best checkpoint is chosen: the lowest loss, the highest of any other."
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Checkpoints."""

    resume_from_checkpoint: bool = param(False, "Go on from the newest whole checkpoint in pytorch_model_folder.")
    save_total_limit: int = param(
        -1,
        "Checkpoints kept, the newest and always the best. 1 keeps the best alone when training ends. -1 keeps all.",
        min=-1,
    )
    save_steps: int = param(
        -1,
        "If positive: save a checkpoint after this many steps and the last, and after an evaluation only if it is the best so far. -1 saves one with every evaluation.",
        min=-1,
    )


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Early stopping."""

    apply_early_stopping: bool = param(False, "Stop when metric_for_best_model no longer improves.")
    early_stopping_patience: int = param(1, "Evaluations without improvement before stopping.", min=1)
    early_stopping_threshold: float = param(0.0, "Improvement that counts.", min=0)


@dataclass(frozen=True, kw_only=True)
class Deepspeed:
    """DeepSpeed."""

    apply_deepspeed: bool = param(
        False, "Train with DeepSpeed's ZeRO, which cuts up among the processes what each would hold whole."
    )
    deepspeed_stage: Literal["2", "3"] = param(
        "2",
        "With apply_deepspeed: 2 cuts up gradients and optimizer states; 3 weights too, which is slower. Has no effect with deepspeed.",
    )
    deepspeed: Path | None = port(
        "uri_file",
        "A DeepSpeed config in place of configs/deepspeed/. Has an effect only if apply_deepspeed is true.",
        optional=True,
    )


@dataclass(frozen=True, kw_only=True)
class Fsdp:
    """FSDP."""

    apply_fsdp: bool = param(
        False, "Train with PyTorch's fully sharded data parallelism, as an alternative to DeepSpeed. GPUs only."
    )


@dataclass(frozen=True, kw_only=True)
class Ort:
    """ONNX Runtime."""

    apply_ort: bool = param(False, "Train with ONNX Runtime.")


@dataclass(frozen=True, kw_only=True)
class FinetuneParams(
    Preset, Lora, Loop, Optimizer, Precision, Speed, Evaluation, Checkpoints, EarlyStopping, Deepspeed, Fsdp, Ort
):
    """Folders."""

    preprocess_output: Path = port("uri_folder", "Output of preprocess: encoded splits and the tokenizer.")
    model_selector_output: Path = port("uri_folder", "Output of model import: the model folder and its metadata.")
    pytorch_model_folder: Path = port(
        "uri_folder",
        "The best model, and the checkpoints saved after every evaluation (weights, config, tokenizer, optimizer, scheduler and random states).",
        output=True,
    )
    mlflow_model_folder: Path = port("mlflow_model", "The best model in MLflow format.", output=True)


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringParams(FinetuneParams):
    """Question answering."""

    metric_for_best_model: Literal["loss", "f1", "exact"] = param(
        "loss", "Metric by which the best checkpoint is chosen: the lowest loss, the highest f1 or exact."
    )  # type: ignore[assignment]
    eval_accumulation_steps: int = param(
        1, "Evaluation batches whose best spans stay on the device before they move to the CPU.", min=1
    )


@dataclass(frozen=True, kw_only=True)
class TokenClassificationParams(FinetuneParams):
    """Token classification."""

    metric_for_best_model: Literal["loss", "f1", "accuracy", "precision", "recall"] = param(
        "loss",
        "Metric by which the best checkpoint is chosen: the lowest loss, the highest f1, accuracy, precision or recall.",
    )  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class EvaluationParams:
    """Evaluation."""

    preprocess_output: Path | None = port(
        "uri_folder", "Output of preprocess, whose test split is scored.", optional=True
    )
    test_data: Path | None = port(
        "uri_file",
        "A file of rows to score, instead of preprocess_output. Rows without gold are predicted only.",
        optional=True,
    )
    pytorch_model_folder: Path | None = port(
        "uri_folder", "The model to score: pytorch_model_folder of a run, or any Hugging Face folder.", optional=True
    )
    mlflow_model_folder: Path | None = port(
        "mlflow_model", "The model to score, instead of pytorch_model_folder.", optional=True
    )
    per_device_eval_batch_size: int = param(16, "Windows scored at a time.", min=1)
    precision: Literal["32", "bf16"] = param("32", "Numbers used in the forward pass.")
    seed: int = param(42, "Seed of the head, where the model has none yet.", min=0, max=2**32 - 1)
    evaluation_result: Path = port("uri_folder", "metrics.json, predictions.jsonl and report.html.", output=True)


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringEvaluationParams(EvaluationParams, QuestionAnsweringColumns):
    """Question answering."""

    eval_accumulation_steps: int = param(
        1, "Batches whose best spans stay on the device before they move to the CPU.", min=1
    )

    null_threshold: float | None = param(
        None,
        "Withhold an answer where the null answer beats it by more than this. Left out, the threshold is the one stored in the model. Matters only for models trained with unanswerable questions.",
    )


@dataclass(frozen=True, kw_only=True)
class TokenClassificationEvaluationParams(EvaluationParams, TokenClassificationColumns):
    """Folders."""


@dataclass(frozen=True, kw_only=True)
class ComputeParams:
    """Compute."""

    compute_model_import: str = param("serverless", "Compute of the model import step.")
    compute_preprocess: str = param("serverless", "Compute of the preprocess step.")
    compute_finetune: str = param("serverless", "Compute of the finetune step.")
    compute_evaluation: str = param("serverless", "Compute of the evaluation step.")
    instance_type_model_import: str = param(CPU_INSTANCE, "Machine of the model import step on serverless compute.")
    instance_type_preprocess: str = param(CPU_INSTANCE, "Machine of the preprocess step on serverless compute.")
    instance_type_finetune: str = param(GPU_INSTANCE, "Machine of the finetune step on serverless compute.")
    instance_type_evaluation: str = param(GPU_INSTANCE, "Machine of the evaluation step on serverless compute.")
    shm_size_finetune: str = param("5g", "Shared memory of the finetune step.")
    num_nodes_finetune: int = param(1, "Machines of the finetune step.", min=1)
    number_of_gpu_to_use_finetuning: int = param(
        1, "Processes on each machine of the finetune step, one for each GPU.", min=1
    )


@dataclass(frozen=True)
class TaskComponents:
    """The parameter classes of the four components of one task."""

    title: str
    model_import: type
    datapreprocess: type
    finetune: type
    evaluation: type


TASKS = {
    "question_answering": TaskComponents(
        title="Question Answering",
        model_import=ModelImportParams,
        datapreprocess=QuestionAnsweringPreprocessParams,
        finetune=QuestionAnsweringParams,
        evaluation=QuestionAnsweringEvaluationParams,
    ),
    "token_classification": TaskComponents(
        title="Token Classification",
        model_import=ModelImportParams,
        datapreprocess=TokenClassificationPreprocessParams,
        finetune=TokenClassificationParams,
        evaluation=TokenClassificationEvaluationParams,
    ),
}

# (parameter, value, why, what to type): valid requests whose machinery isn't there.
UNSUPPORTED: tuple[tuple[str, Any, str, str], ...] = (
    ("apply_ort", True, "ONNX Runtime training was deprecated upstream and isn't wired in", "--apply_ort false"),
)

# (parameters, the parameter they depend on, its values for which they have an effect)
NEEDS: tuple[tuple[tuple[str, ...], str, tuple[Any, ...]], ...] = (
    (
        ("merge_lora_weights", "lora_alpha", "lora_r", "lora_dropout", "lora_type", "finetune_in_4bit"),
        "apply_lora",
        (True,),
    ),
    (("early_stopping_patience", "early_stopping_threshold"), "apply_early_stopping", (True,)),
    (("eval_steps", "evaluation_steps_interval"), "evaluation_strategy", ("steps",)),
    (("logging_steps",), "logging_strategy", ("steps",)),
    (("adam_beta1", "adam_beta2", "adam_epsilon"), "optim", ("adamw_hf", "adamw_torch")),
    (("deepspeed", "deepspeed_stage"), "apply_deepspeed", (True,)),
    (("warmup_steps",), "lr_scheduler_type", tuple(name for name in SCHEDULERS if name != "constant")),
    (("lr_scheduler_cycles",), "lr_scheduler_type", ("cosine_with_restarts",)),
    (("lr_scheduler_power",), "lr_scheduler_type", ("polynomial",)),
    (("keep_global_batch_size",), "auto_find_batch_size", (True,)),
)

# What a checkpoint is made of, or what its optimizer and scheduler go on with whatever is given: changed in a resumed
# run, they would give a model that no run of these parameters gives.
FIXED_ON_RESUME: tuple[str, ...] = (
    "apply_lora", "lora_r", "lora_alpha", "lora_type", "finetune_in_4bit", "optim", "learning_rate", "warmup_steps",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type", "lr_scheduler_cycles", "lr_scheduler_power", "seed",
    "metric_for_best_model", "precision", "apply_deepspeed", "apply_fsdp",
)  # fmt: skip


def refuse_unsupported(params: FinetuneParams) -> None:
    """Raises: UnsupportedError, with every request that can't be carried out and the value to set instead."""
    given = vars(params)
    faults = [
        Fault(f"--{name} {to_text(given[name])}", why=why, fix=fix)
        for name, value, why, fix in UNSUPPORTED
        if given[name] == value
    ]
    if faults:
        raise UnsupportedError(*faults)


def refuse_contradictions(params: FinetuneParams) -> None:
    """Raises: ParameterError, with all parameters that contradict each other."""
    faults = []
    if params.evaluation_strategy == "steps" and not params.evaluation_steps_interval and params.eval_steps < 1:
        what = f"--evaluation_strategy steps needs --eval_steps of at least 1, not {params.eval_steps}"
        why = "without an evaluation there is no best model, and evaluation_steps_interval is 0"
        faults.append(Fault(what, why=why, fix="--eval_steps 500, or --evaluation_steps_interval 0.5"))
    if params.lr_scheduler_type == "polynomial" and params.learning_rate == 0:
        what = "--lr_scheduler_type polynomial falls from a learning rate above 0, and --learning_rate is 0"
        faults.append(Fault(what, fix="--learning_rate 2e-05, or --lr_scheduler_type constant"))
    if params.apply_deepspeed and params.apply_fsdp:
        what = "--apply_deepspeed true and --apply_fsdp true are two ways to cut up the same model"
        faults.append(Fault(what, fix="--apply_fsdp false, or --apply_deepspeed false"))
    if faults:
        raise ParameterError(*faults)


def without_effect(params: FinetuneParams) -> list[str]:
    """One line for each parameter that was set but that another parameter turns off."""
    given, defaults = vars(params), {f.name: f.default for f in fields(params)}
    lines = [
        f"{name} {to_text(given[name])} has no effect with {needed} {to_text(given[needed])}"
        for names, needed, values in NEEDS
        for name in names
        if given[name] != defaults[name] and given[needed] not in values
    ]
    if params.evaluation_steps_interval and params.eval_steps != defaults["eval_steps"]:
        lines.append(f"eval_steps {params.eval_steps} has no effect with evaluation_steps_interval")
    if params.apply_deepspeed and params.deepspeed and params.deepspeed_stage != defaults["deepspeed_stage"]:
        lines.append(f"deepspeed_stage {params.deepspeed_stage} has no effect with deepspeed: the config says it")
    if params.max_steps > 0 and params.num_train_epochs != defaults["num_train_epochs"]:
        lines.append(f"num_train_epochs {params.num_train_epochs} has no effect with max_steps {params.max_steps}")
    return lines
