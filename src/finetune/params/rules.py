"""The rules on what does not go together, of parameters, a launch, a machine or a model: a row for each combination.

A row names the class of parameters that it is about, when it fires, what is said, why, what to type instead, and
whether that is an error of the user's, something that isn't supported, or a note. Adding a rule is adding a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from finetune.core.errors import ParameterError, UnsupportedError
from finetune.params.case import Case, Rule
from finetune.params.datapreprocess import DataFiles
from finetune.params.evaluation import (
    EvaluationParams,
)
from finetune.params.export import CALIBRATION, ExportParams
from finetune.params.finetune import SCHEDULERS, EncoderParams, Export, FinetuneParams
from finetune.params.model_import import ModelImportParams
from finetune.params.schema import to_text

P = TypeVar("P")
Evaluating = TypeVar("Evaluating", FinetuneParams, EvaluationParams)


def firing(case: Case[P]) -> list[Rule[P]]:
    """Return the rows that the case is a case of."""
    with_model = case.known_model is not None
    return [r for r in RULES if isinstance(case.params, r.of) and r.of_model == with_model and r.fires(case)]


def errors(case: Case[P]) -> list[ParameterError | UnsupportedError]:
    """Return an error for each row that refuses the case."""
    return [rule.kind(rule.fault(case)) for rule in firing(case) if rule.kind]


def notes(case: Case[P]) -> list[str]:
    """Return one line for each parameter that was set but that another one turns off."""
    return [rule.fault(case).what for rule in firing(case) if not rule.kind]


def _at_default(params: FinetuneParams, name: str) -> bool:
    """Return whether a parameter has the default that it has for this task."""
    return any(f.name == name and f.default == vars(params)[name] for f in fields(params))


# (parameters, the parameter they depend on, its values for which they have an effect): a note for each.
NEEDS: tuple[tuple[tuple[str, ...], str, tuple[str | int, ...]], ...] = (
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
    (("per_device_train_batch_size",), "max_tokens_per_batch", (0,)),
)
WITH_BLOCKS = "a BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, ELECTRA or MPNet"  # models/blocks.py
WITH_KERNELS = "a BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, ALBERT or DistilBERT"  # models/kernels/families.py
OF_TEACHER = ("distillation_weight", "distillation_temperature")


def _needs() -> Iterator[Rule[FinetuneParams]]:
    for names, needed, values in NEEDS:
        for name in names:
            yield _need(name, needed, values)
    for name in ("pruning_ratio", "pruning_method"):
        yield _need(name, "apply_pruning", (True,), EncoderParams)


def _without_teacher() -> Iterator[Rule[FinetuneParams]]:
    for name in OF_TEACHER:
        yield Rule(
            FinetuneParams,
            lambda case, name=name: not _distils(case) and not _at_default(case.params, name),  # type: ignore[misc]
            f"{name} has no effect without teacher_model_path",
            kind=None,
        )


def _distils(case: Case[FinetuneParams]) -> bool:
    return case.params.teacher_model_path is not None


def _need(
    name: str, needed: str, values: tuple[str | int, ...], of: type[FinetuneParams] = FinetuneParams
) -> Rule[FinetuneParams]:
    def text(case: Case[FinetuneParams]) -> str:
        given = vars(case.params)
        return f"{name} {to_text(given[name])} has no effect with {needed} {to_text(given[needed])}"

    def fires(case: Case[FinetuneParams]) -> bool:
        return not _at_default(case.params, name) and vars(case.params)[needed] not in values

    return Rule(of, fires, text, kind=None)


def _one_of(of: type[P], *names: str) -> Rule[P]:
    """Return a row for parameters of which exactly one is needed."""

    def given(case: Case[P]) -> list[str]:
        return [name for name in names if vars(case.params)[name] is not None]

    def text(case: Case[P]) -> str:
        several = _listed(given(case), "and")
        return f"{several} are {'both' if len(given(case)) == 2 else 'all'} given" if several else f"no {any_of}"

    any_of = _listed(names, "or")
    return Rule(of, lambda case: len(given(case)) != 1, text, fix=f"give one of {any_of}", kind=ParameterError)


def _listed(names: Sequence[str], word: str) -> str:
    *others, last = [f"--{name}" for name in names] or [""]
    return f"{', '.join(others)} {word} {last}" if others else last


def _nothing_accumulated(of: type[Evaluating]) -> Rule[Evaluating]:
    return Rule(
        of,
        lambda case: case.params.eval_accumulation_steps == 0,
        "--eval_accumulation_steps 0",
        "results move to the CPU after so many batches",
        "--eval_accumulation_steps 1, or -1 for all at once",
        ParameterError,
    )


def _no_16_bits(of: type[Evaluating]) -> Rule[Evaluating]:
    """Return a row for a family that transformers can't compute in 16 bits."""
    return Rule(
        of,
        lambda case: case.model.model_type == "deberta" and case.params.precision != "32",
        lambda case: f"--precision {case.params.precision} for a deberta",
        "transformers masks DeBERTa v1's attention with the least number of 32 bits, which 16 bits can't hold",
        "--precision 32, or a DeBERTa v2 or v3",
        of_model=True,
    )


# (parameter, its values with which a batch may be without padding, why it needs padding otherwise)
PADDED = (
    ("attn_implementation", ("auto",), "it is not told where windows begin"),
    ("torch_compile", (False,), "where attention pads, each batch would be compiled anew"),
    ("apply_ort", (False,), "its graph is that of padded batches"),
)
# (parameter, its values with which passes may be recorded, why others can't be)
RECORDED = (
    ("precision", ("bf16", "16"), "FlashAttention computes in 16 bits"),
    ("padding_free", ("auto", "always"), "passes are recorded of rows without padding"),
    ("attn_implementation", ("auto",), "passes are recorded with FlashAttention of rows without padding"),
    ("apply_ort", (False,), "its passes are ONNX Runtime's"),
    ("apply_deepspeed", (False,), "between its kernels, it sends and gathers what is sharded"),
    ("apply_fsdp", (False,), "between its kernels, it sends and gathers what is sharded"),
    ("finetune_in_4bit", (False,), "4 bits become 16 by kernels that were never recorded"),
    ("gradient_checkpointing", (False,), "the host sets back what dropout draws before layers are computed again"),
    ("apply_pruning", (False,), "gates close by what the host computes"),
    ("apply_qat", (False,), "ranges are set by what the host computes"),
)


def _beside(
    switch: str, on: str | bool, off: str, table: Sequence[tuple[str, tuple[str | bool, ...], str]]
) -> Iterator[Rule[EncoderParams]]:
    """Yield a row for each parameter of the table, whose other values `switch` can't be `on` with."""
    for name, allowed, why in table:
        yield Rule(
            EncoderParams,
            lambda case, name=name, allowed=allowed: (  # type: ignore[misc]
                vars(case.params)[switch] == on and vars(case.params)[name] not in allowed
            ),
            lambda case, name=name: f"--{switch} {to_text(on)} with --{name} {to_text(vars(case.params)[name])}",  # type: ignore[misc]
            why,
            f"--{name} {to_text(allowed[0])}, or --{switch} {off}",
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _from_hub(params: ModelImportParams) -> bool:
    """Return whether the hub is asked for the model, by the parameter that wins."""
    local = params.pytorch_model_path or params.mlflow_model_path
    return not local and params.huggingface_id is not None and not Path(params.huggingface_id).is_dir()


def _in_4bit(case: Case[FinetuneParams]) -> bool:
    return case.params.apply_lora and case.params.finetune_in_4bit


def _flash_attention(case: Case[FinetuneParams]) -> bool:
    return case.params.attn_implementation == "flash_attention_2"


RULES: tuple[Rule[Any], ...] = (
    # --- model import, preprocess and evaluation ---
    Rule(
        ModelImportParams,
        lambda case: (
            not (
                case.params.pytorch_model_path
                or case.params.mlflow_model_path
                or case.params.huggingface_id is not None
            )
        ),
        "no model is given",
        fix="give --pytorch_model_path, --mlflow_model_path or --huggingface_id",
        kind=ParameterError,
    ),
    Rule(
        ModelImportParams,
        lambda case: case.params.validation_output is not None,
        "validation_output has no effect: a model is looked at here",
        kind=None,
    ),
    Rule(
        ModelImportParams,
        lambda case: case.params.huggingface_revision is not None and not _from_hub(case.params),
        lambda case: (
            f"huggingface_revision {case.params.huggingface_revision} has no effect: the model is not of a hub"
        ),
        kind=None,
    ),
    Rule(
        ModelImportParams,
        lambda case: case.params.huggingface_token_secret is not None and not _from_hub(case.params),
        "huggingface_token_secret has no effect, and is not read: the model is not of a hub",
        kind=None,
    ),
    Rule(
        DataFiles,
        lambda case: not (case.params.train_file_path or case.params.train_mltable_path or case.params.dataset_name),
        "there are no training rows",
        fix="give --train_file_path, --train_mltable_path or --dataset_name",
        kind=ParameterError,
    ),
    _one_of(EvaluationParams, "preprocess_output", "test_data"),
    _one_of(EvaluationParams, "mlflow_model_folder", "pytorch_model_folder", "openvino_model_folder"),
    _no_16_bits(EvaluationParams),
    _nothing_accumulated(FinetuneParams),
    _nothing_accumulated(EvaluationParams),
    # --- export ---
    _one_of(ExportParams, "mlflow_model_folder", "pytorch_model_folder"),
    Rule(
        ExportParams,
        lambda case: case.params.quantization == "none" and case.params.calibration_samples != CALIBRATION,
        lambda case: f"calibration_samples {case.params.calibration_samples} has no effect with quantization none",
        kind=None,
    ),
    # --- finetune: what contradicts itself ---
    Rule(
        FinetuneParams,
        lambda case: (
            case.params.evaluation_strategy == "steps"
            and not case.params.evaluation_steps_interval
            and case.params.eval_steps < 1
        ),
        lambda case: f"--evaluation_strategy steps needs --eval_steps of at least 1, not {case.params.eval_steps}",
        "without an evaluation there is no best model, and evaluation_steps_interval is 0",
        "--eval_steps 500, or --evaluation_steps_interval 0.5",
        ParameterError,
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.lr_scheduler_type == "polynomial" and case.params.learning_rate == 0,
        "--lr_scheduler_type polynomial falls from a learning rate above 0, and --learning_rate is 0",
        fix="--learning_rate 2e-05, or --lr_scheduler_type constant",
        kind=ParameterError,
    ),
    Rule(
        FinetuneParams,
        lambda case: 0 < case.params.loss_spike_threshold <= 1,
        lambda case: f"--loss_spike_threshold {case.params.loss_spike_threshold} takes every other step for a spike",
        "half of all losses are above their median",
        "--loss_spike_threshold 5",
        ParameterError,
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_deepspeed and case.params.apply_fsdp,
        "--apply_deepspeed true and --apply_fsdp true are two ways to shard the same model",
        fix="--apply_fsdp false, or --apply_deepspeed false",
        kind=ParameterError,
    ),
    Rule(
        Export,
        lambda case: case.params.quantization != "none" and case.params.openvino_model_folder is None,
        lambda case: f"--quantization {case.params.quantization} has no folder to write to",
        fix="--openvino_model_folder FOLDER, or --quantization none",
        kind=ParameterError,
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.quantization == "qat" and not case.params.apply_qat,
        "--quantization qat has no ranges that were learnt: --apply_qat is false",
        fix="--apply_qat true, or --quantization ptq",
        kind=ParameterError,
    ),
    # --- what isn't supported anywhere ---
    Rule(
        FinetuneParams,
        lambda case: _in_4bit(case) and case.params.lora_type == "dora",
        "--finetune_in_4bit true with --lora_type dora",
        "DoRA's norms are those of weights in full",
        "--lora_type lora",
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.max_tokens_per_batch > 0 and case.params.auto_find_batch_size,
        lambda case: f"--auto_find_batch_size true with --max_tokens_per_batch {case.params.max_tokens_per_batch}",
        "it halves the windows of a batch, whose number is not set",
        "--auto_find_batch_size false, or --max_tokens_per_batch 0",
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_deepspeed and case.params.auto_find_batch_size and case.zero_stage == 3,
        "--auto_find_batch_size true with ZeRO-3",
        "ZeRO-3 shards the weights before a batch can be tried",
        "--auto_find_batch_size false",
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_deepspeed and _in_4bit(case),
        "--finetune_in_4bit true with DeepSpeed",
        "ZeRO shards weights of 16 or 32 bits",
        "--finetune_in_4bit false, or --apply_deepspeed false",
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_deepspeed and case.params.torch_compile,
        "--torch_compile true with DeepSpeed",
        "its hooks break the compiled graph",
        "--torch_compile false, or --apply_deepspeed false",
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_fsdp and case.params.auto_find_batch_size,
        "--auto_find_batch_size true with FSDP",
        "it is not tried with it",
        "--auto_find_batch_size false",
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_fsdp and _in_4bit(case),
        "--finetune_in_4bit true with FSDP",
        "it shards weights of 16 or 32 bits",
        "--finetune_in_4bit false",
    ),
    Rule(
        FinetuneParams,
        lambda case: _distils(case) and (case.params.apply_deepspeed or case.params.apply_fsdp),
        "--teacher_model_path with DeepSpeed or FSDP",
        "it is not tried with them",
        "--apply_deepspeed false --apply_fsdp false",
    ),
    Rule(
        FinetuneParams,
        lambda case: (
            case.params.loss_spike_threshold > 0
            and (case.params.apply_deepspeed or case.params.apply_fsdp or case.params.precision == "16")
        ),
        "--loss_spike_threshold with DeepSpeed, FSDP or --precision 16",
        "a step without its rows is one without a gradient, and there it has to have one",
        "--loss_spike_threshold 0",
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.apply_pruning and (case.params.apply_deepspeed or case.params.apply_fsdp),
        "--apply_pruning true with DeepSpeed or FSDP",
        "each process needs all weights to choose what is cut",
        "--apply_deepspeed false --apply_fsdp false",
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.apply_pruning and case.params.apply_lora,
        "--apply_pruning true with --apply_lora true",
        "the weights round what is cut must learn to do without it, and LoRA freezes them",
        "--apply_lora false, or prune the merged model in a run of its own",
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.apply_pruning and case.params.precision == "16",
        "--apply_pruning true with --precision 16",
        "the gradients of gates are not those of the loss once fp16's loss is scaled",
        "--precision bf16",
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.apply_pruning and case.params.torch_compile,
        "--apply_pruning true with --torch_compile true",
        "it is not tried with it",
        "--torch_compile false",
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.apply_qat and (case.params.apply_deepspeed or case.params.apply_fsdp),
        "--apply_qat true with DeepSpeed or FSDP",
        "it is not tried with them",
        "--apply_deepspeed false --apply_fsdp false",
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.apply_qat and case.params.apply_lora,
        "--apply_qat true with --apply_lora true",
        "merged, the weights would not be those that were rounded in training",
        "--apply_lora false, or --apply_qat true in a run of its own, with the merged model",
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.apply_qat and case.params.precision == "16",
        "--apply_qat true with --precision 16",
        "it is not tried with fp16's loss scaling",
        "--precision bf16",
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.apply_qat and case.params.torch_compile,
        "--apply_qat true with --torch_compile true",
        "it is not tried with it",
        "--torch_compile false",
    ),
    *_beside("padding_free", "always", "auto", PADDED),
    *_beside("cuda_graphs", True, "false", RECORDED),
    # --- what this machine or this launch can't do ---
    Rule(
        FinetuneParams,
        lambda case: bool(case.world.gpu_out_of_reach()),
        "the GPU of this machine can't be used, and training on its CPU would take many times as long",
        lambda case: case.world.gpu_out_of_reach(),
        "a newer driver or another build of torch; CUDA_VISIBLE_DEVICES=-1 trains on the CPU",
    ),
    Rule(
        FinetuneParams,
        lambda case: (
            case.world.launched
            and case.world.per_machine > 1
            and case.world.has_gpu()
            and case.world.per_machine > case.world.gpus()
        ),
        lambda case: f"{case.world.per_machine} processes on a machine with {_counted(case.world.gpus(), 'GPU')}",
        "each process needs a GPU of its own",
        lambda case: f"torchrun --nproc-per-node {case.world.gpus()}, or CUDA_VISIBLE_DEVICES=-1 for the CPU",
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_deepspeed and not case.world.has_deepspeed(),
        "--apply_deepspeed true",
        "the package deepspeed is not installed",
        'pip install ".[deepspeed]", or --apply_deepspeed false',
    ),
    Rule(
        Export,
        lambda case: case.params.quantization != "none" and not case.world.has_openvino(),
        lambda case: f"--quantization {case.params.quantization}",
        "the packages openvino and nncf are not installed",
        'pip install ".[compression]", or --quantization none',
    ),
    Rule(
        FinetuneParams,
        # transformers would take it and compute in 32 bits.
        lambda case: case.params.precision == "16" and not case.world.has_gpu(),
        "--precision 16",
        "fp16 needs a GPU, and none is visible here",
        "--precision bf16",
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.precision == "bf16" and case.world.has_gpu() and not case.world.gpu_has_bf16(),
        "--precision bf16",
        lambda case: f"{case.world.gpu_name()} has no bf16",
        "--precision 16",
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.precision == "bf16" and not case.world.has_gpu() and not case.world.cpu_has_bf16(),
        "precision bf16 is slower here than 32: this processor has no instructions for it",
        kind=None,
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.torch_compile and not case.world.has_gpu() and not case.world.has_compiler(),
        "--torch_compile true",
        "torch.compile needs a C++ compiler, and none is found here",
        "--torch_compile false, or install g++",
    ),
    Rule(
        FinetuneParams,
        lambda case: _flash_attention(case) and not case.world.has_flash_attention(),
        "--attn_implementation flash_attention_2",
        "it needs an NVIDIA GPU and the package flash-attn",
        "--attn_implementation sdpa",
    ),
    Rule(
        FinetuneParams,
        lambda case: _flash_attention(case) and case.params.precision == "32" and case.world.has_flash_attention(),
        "--attn_implementation flash_attention_2",
        "FlashAttention computes in 16 bits alone",
        "--precision bf16",
    ),
    Rule(
        FinetuneParams,
        lambda case: _in_4bit(case) and not case.world.has_gpu(),
        "--finetune_in_4bit true",
        "no GPU is visible here, and on a CPU bitsandbytes packs 4-bit weights so that they can't be trained on",
        "--finetune_in_4bit false",
    ),
    Rule(
        FinetuneParams,
        lambda case: _in_4bit(case) and case.world.has_gpu() and not case.world.has_bitsandbytes(),
        "--finetune_in_4bit true",
        "it needs the package bitsandbytes",
        'pip install ".[qlora]", or --finetune_in_4bit false',
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_fsdp and not case.world.has_gpu(),
        "--apply_fsdp true",
        "no GPU is visible here, and on CPUs accelerate trains with DDP instead, without a word",
        "--apply_fsdp false, or --apply_deepspeed true",
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_fsdp and case.world.processes == 1,
        "--apply_fsdp true",
        "there is one process, and nothing to shard the model with",
        "torchrun --nproc-per-node N, or --apply_fsdp false",
    ),
    # --- what a model can't do ---
    _no_16_bits(FinetuneParams),
    Rule(
        FinetuneParams,
        lambda case: case.params.gradient_checkpointing and not case.model.supports_gradient_checkpointing,
        "--gradient_checkpointing true",
        lambda case: f"transformers can't compute the layers of {case.model.class_name} again",
        "--gradient_checkpointing false",
        of_model=True,
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_lora and not case.model.has_linear_layers,
        "--apply_lora true",
        lambda case: f"a {case.model.model_type} has no linear layers that adapters could be put on",
        "--apply_lora false",
        of_model=True,
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_fsdp and case.model.is_encoder_decoder,
        "--apply_fsdp true",
        lambda case: (
            f"encoder and decoder of a {case.model.model_type} share weights, which FSDP2 can't hold in two parts"
        ),
        "--apply_fsdp false, or --apply_deepspeed true",
        of_model=True,
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.apply_fsdp and not case.model.is_encoder_decoder and not case.model.sharded_layers,
        "--apply_fsdp true",
        lambda case: f"transformers does not name the layers of a {case.model.model_type}",
        "--apply_fsdp false, or --apply_deepspeed true",
        of_model=True,
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.apply_pruning and not case.model.has_blocks,
        "--apply_pruning true",
        lambda case: f"which blocks of this model type ({case.model.model_type}) can be cut is not known",
        f"--apply_pruning false, or {WITH_BLOCKS}",
        of_model=True,
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.apply_qat and not case.model.has_blocks,
        "--apply_qat true",
        lambda case: f"which layers of this model type ({case.model.model_type}) are to be rounded is not known",
        f"--apply_qat false, or {WITH_BLOCKS}",
        of_model=True,
    ),
    Rule(
        Export,
        lambda case: case.params.quantization != "none" and bool(case.model.not_exported),
        lambda case: f"--quantization {case.params.quantization} for this model type ({case.model.model_type})",
        lambda case: case.model.not_exported,
        "--quantization none",
        of_model=True,
    ),
    Rule(
        EncoderParams,
        lambda case: case.params.padding_free == "always" and case.model.needs_padding,
        "--padding_free always",
        lambda case: f"that this model type ({case.model.model_type}) computes the same without padding is not proved",
        f"--padding_free auto, or {WITH_KERNELS}",
        of_model=True,
    ),
    # --- what has no effect ---
    *_needs(),
    *_without_teacher(),
    Rule(
        FinetuneParams,
        lambda case: bool(case.params.evaluation_steps_interval) and not _at_default(case.params, "eval_steps"),
        lambda case: f"eval_steps {case.params.eval_steps} has no effect with evaluation_steps_interval",
        kind=None,
    ),
    Rule(
        FinetuneParams,
        lambda case: (
            case.params.apply_deepspeed
            and case.params.deepspeed is not None
            and not _at_default(case.params, "deepspeed_stage")
        ),
        lambda case: f"deepspeed_stage {case.params.deepspeed_stage} has no effect with deepspeed: the config says it",
        kind=None,
    ),
    Rule(
        FinetuneParams,
        lambda case: case.params.max_steps > 0 and not _at_default(case.params, "num_train_epochs"),
        lambda case: (
            f"num_train_epochs {case.params.num_train_epochs} has no effect with max_steps {case.params.max_steps}"
        ),
        kind=None,
    ),
)
