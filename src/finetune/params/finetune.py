"""The parameters of finetune, in groups."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from finetune.params.schema import param, port

SchedulerName = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]


SCHEDULERS: tuple[str, ...] = get_args(SchedulerName)

# All that is written into the folders of the model, as core/outputs.py has it; tokenizers differ in their files.
PYTORCH_MODEL = (
    "training.json", "training.part", "config.json", "generation_config.json", "model.safetensors",
    "model-#-of-#.safetensors", "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors",
    "base_model/",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "additional_chat_templates/", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "spm.model",
    "sentencepiece.bpe.model", "tokenizer.model", "source.spm", "target.spm", "target_vocab.json", "README.md", "SHA256SUMS",
    ".saving/",
)  # fmt: skip
OPENVINO_MODEL = (
    "backends.json", "backends.html", "openvino_model.xml", "openvino_model.bin",
    "openvino_encoder_model.xml", "openvino_encoder_model.bin", "openvino_decoder_model.xml", "openvino_decoder_model.bin",
    "model.onnx", "model_int8.onnx", "encoder_model.onnx", "decoder_model.onnx", "encoder_model_int8.onnx",
    "decoder_model_int8.onnx", ".exporting/", "mlflow_model/",
    *PYTORCH_MODEL,  # config.json and the tokenizer, whose names are those of a PyTorch folder
)  # fmt: skip
MLFLOW_MODEL = (
    "MLmodel", "artifacts/", "code/", "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json",
    "serving_input_example.json", "serving.py",
)  # fmt: skip


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
class Distillation:
    """Distillation."""

    teacher_model_path: Path | None = port(
        "uri_folder",
        "A finetuned model of the same task, most often a larger one, whose probabilities are learnt besides: a PyTorch folder, or an MLflow model.",
        optional=True,
    )
    distillation_weight: float = param(
        0.5,
        "With teacher_model_path: the share of the training loss that is the distance from the teacher's probabilities.",
        min=0,
        max=1,
    )
    distillation_temperature: float = param(
        2.0,
        "With teacher_model_path: what the logits of both are divided by. The higher, the more the unlikely answers count.",
        min=0.1,
    )


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Pruning."""

    apply_pruning: bool = param(
        False,
        "Find in training which attention heads and feed-forward columns the task needs least, and cut them out of the saved model: smaller, and faster on any machine.",
    )
    pruning_ratio: float = param(
        0.4,
        "With apply_pruning: the share of the weights of all heads and feed-forward columns that is cut.",
        min=0,
        max=0.9,
    )
    pruning_method: Literal["gates", "taylor"] = param(
        "gates",
        "With apply_pruning: what a block is worth. gates learns it like a weight, taylor sums squared gradients.",
    )


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export."""

    quantization: Literal["none", "ptq"] = param(
        "none",
        "Write openvino_model_folder after training, as finetune export does. ptq: also with weights in INT8. none: write nothing there.",
    )
    openvino_model_folder: Path | None = port(
        "uri_folder",
        "With quantization: the best model for OpenVINO, its tokenizer, mlflow_model to deploy, backends.json and backends.html with what it was compared with.",
        output=True,
        optional=True,
        writes=OPENVINO_MODEL,
    )


@dataclass(frozen=True, kw_only=True)
class Quantisation(Export):
    """Quantisation."""

    apply_qat: bool = param(
        False,
        "Train with weights and inputs of linear layers rounded to 8 bits, so that the model is used to it: finetune export then has an INT8 model whose ranges were learnt.",
    )
    quantization: Literal["none", "ptq", "qat"] = param(
        "none",
        "Write openvino_model_folder after training, as finetune export does. ptq: INT8 with ranges that are set then, and with apply_qat those that were learnt. qat: those that were learnt alone. none: write nothing there.",
    )  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Kernels."""

    cpu_kernels: bool = param(
        True,
        "On a CPU, train with attention and dropout of our own: the same distribution, faster. For BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, ALBERT and DistilBERT, with attn_implementation auto.",
    )
    padding_free: Literal["auto", "always", "never"] = param(
        "auto",
        "Train on the tokens of a batch as one row, without padding. auto: on a GPU in 16 bits, with FlashAttention and its dropout, for the models of cpu_kernels. always: elsewhere too, where attention pads.",
    )
    cuda_graphs: bool = param(
        False,
        "On one GPU, record the passes of training steps without padding as CUDA graphs, so that the GPU doesn't wait for the host: faster for small models and batches. They need at least twice the memory of activations.",
    )


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Training."""

    num_train_epochs: int = param(1, "Passes over the training rows.", min=1)
    max_steps: int = param(
        -1, "If positive, the number of optimizer steps; num_train_epochs then has no effect.", min=-1
    )
    per_device_train_batch_size: int = param(1, "Training windows on each device at a time.", min=1)
    max_tokens_per_batch: int = param(
        0,
        "If positive, the most tokens, padding counted, in a training batch on each device: few long windows, or many short ones; of a target where that is longer. per_device_train_batch_size then has no effect.",
        min=0,
    )
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
        False,
        "Compile the model with torch.compile; layer by layer where batches have no padding, which is faster on GPUs. It takes minutes at first, and on CPUs seldom pays.",
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
    eval_accumulation_steps: int = param(
        1,
        "Evaluation batches whose results, the best spans or tags, stay on the device before they move to the CPU. -1 keeps those of all.",
        min=-1,
    )
    metric_for_best_model: Literal["loss"] = param(
        "loss", "Metric by which the best checkpoint is chosen: the lowest loss, the highest of any other."
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Checkpoints."""

    resume_from_checkpoint: bool = param(
        False,
        "Go on from the newest complete checkpoint in pytorch_model_folder. A run that was interrupted goes on without it when the same command is given again.",
    )
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
class Hangs:
    """Hangs."""

    hang_timeout: float = param(
        30.0,
        "Minutes without progress in a step after which a run hangs: it ends with exit code 10 and the name of the process that is behind. Evaluations and saves may take twice as long, the start and the end four times, and a step 20 times the median. 0 means any time.",
        min=0,
        max=100_000,
    )


@dataclass(frozen=True, kw_only=True)
class Spikes:
    """Loss spikes."""

    loss_spike_threshold: float = param(
        0.0,
        "If positive: where the loss of a step is more than so many times the median of the 50 before, or a loss or gradient isn't finite, the run goes on from its newest checkpoint without the rows of that step and the one before. A fourth time is an error. 0: only what isn't finite is one.",
        min=0,
        max=1_000_000,
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
        False, "Train with DeepSpeed's ZeRO, which shards among the processes what each would hold whole."
    )
    deepspeed_stage: Literal["2", "3"] = param(
        "2",
        "With apply_deepspeed: 2 shards gradients and optimizer states; 3 weights too, which is slower. Has no effect with deepspeed.",
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

    apply_ort: bool = param(
        False,
        "Train with ONNX Runtime, in an environment with .[ort]. Where it is not there, or not seen to compute what PyTorch does, a warning says so, and PyTorch trains the same model.",
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneParams(
    Preset,
    Lora,
    Distillation,
    Loop,
    Optimizer,
    Precision,
    Speed,
    Evaluation,
    Checkpoints,
    Hangs,
    Spikes,
    EarlyStopping,
    Deepspeed,
    Fsdp,
    Ort,
):
    """Folders."""

    preprocess_output: Path = port("uri_folder", "Output of preprocess: encoded splits and the tokenizer.")
    model_selector_output: Path = port("uri_folder", "Output of model import: the model folder and its metadata.")
    pytorch_model_folder: Path = port(
        "uri_folder",
        "The best model, and the checkpoints saved after every evaluation (weights, config, tokenizer, optimizer, scheduler and random states).",
        output=True,
        writes=(*PYTORCH_MODEL, "checkpoint-#/", "resolved_config.yaml", "mlflow.db", "mlflow.db-journal"),
    )
    mlflow_model_folder: Path = port(
        "mlflow_model", "The best model in MLflow format.", output=True, writes=MLFLOW_MODEL
    )


@dataclass(frozen=True, kw_only=True)
class EncoderParams(FinetuneParams, Pruning, Quantisation, Kernels):
    """Models that read alone."""


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringParams(EncoderParams):
    """Question answering."""

    metric_for_best_model: Literal["loss", "f1", "exact"] = param(
        "loss", "Metric by which the best checkpoint is chosen: the lowest loss, the highest f1 or exact."
    )  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class TokenClassificationParams(EncoderParams):
    """Token classification."""

    metric_for_best_model: Literal["loss", "f1", "accuracy", "precision", "recall"] = param(
        "loss",
        "Metric by which the best checkpoint is chosen: the lowest loss, the highest f1, accuracy, precision or recall.",
    )  # type: ignore[assignment]
    eval_accumulation_steps: int = param(
        -1,
        "Evaluation batches whose best tags stay on the device before they move to the CPU. -1 keeps those of all.",
        min=-1,
    )
    class_weights: Literal["none", "balanced", "sqrt"] = param(
        "none",
        "What a word counts in the training loss: 1; balanced, words / (classes x words of its class), so that all classes count alike; sqrt, the square root of that. The evaluation loss stays without.",
    )


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing:
    """Label smoothing."""

    label_smoothing_factor: float = param(
        0.0,
        "Share of each target token that is spread over the whole vocabulary in the training loss. The evaluation loss stays without.",
        min=0,
        max=0.99,
    )


@dataclass(frozen=True, kw_only=True)
class WriterParams(FinetuneParams, LabelSmoothing, Export):
    """Models that write."""


@dataclass(frozen=True, kw_only=True)
class GenerativeQuestionAnsweringParams(WriterParams):
    """Generative question answering."""

    metric_for_best_model: Literal["loss", "f1", "exact"] = param(
        "loss", "Metric by which the best checkpoint is chosen: the lowest loss, the highest f1 or exact."
    )  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class TranslationParams(WriterParams):
    """Translation."""

    num_train_epochs: int = param(5, "Passes over the training rows.", min=1)
    per_device_train_batch_size: int = param(4, "Training windows on each device at a time.", min=1)
    per_device_eval_batch_size: int = param(4, "Validation windows on each device at a time.", min=1)
    logging_steps: int = param(100, "With strategy steps: log after this many steps.", min=1)
    metric_for_best_model: Literal["loss", "bleu", "chrf"] = param(
        "loss", "Metric by which the best checkpoint is chosen: the lowest loss, the highest bleu or chrf."
    )  # type: ignore[assignment]


# What a checkpoint is made of, or what its optimizer and scheduler go on with whatever is given: changed in a resumed
# run, they would give a model that no run of these parameters gives.
FIXED_ON_RESUME: tuple[str, ...] = (
    "max_tokens_per_batch", "apply_lora", "lora_r", "lora_alpha", "lora_type", "finetune_in_4bit", "optim", "learning_rate", "warmup_steps",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type", "lr_scheduler_cycles", "lr_scheduler_power", "seed",
    "metric_for_best_model", "precision", "apply_deepspeed", "apply_fsdp", "class_weights", "label_smoothing_factor",
    "distillation_weight", "distillation_temperature", "apply_pruning", "pruning_ratio", "pruning_method", "apply_qat",
)  # fmt: skip
