"""The finetune inputs against the seed specification, and the table of rules, row by row."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.core.errors import ParameterError, UnsupportedError
from finetune.core.world import World
from finetune.params.case import Case, ModelFacts, Rule
from finetune.params.components import TASKS
from finetune.params.datapreprocess import QuestionAnsweringPreprocessParams
from finetune.params.evaluation import (
    QuestionAnsweringEvaluationParams,
)
from finetune.params.export import ExportParams
from finetune.params.finetune import QuestionAnsweringParams
from finetune.params.model_import import ModelImportParams
from finetune.params.rules import RULES, errors, firing, notes
from finetune.params.schema import params_of, to_text
from tests.conftest import ROOT

BOOL = ("true", "false")
SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")

# question_answering_finetune 0.0.17 and token_classification_finetune 0.0.2 alike: name, type, default, enum. All are
# optional but for the two folders.
SHARED: tuple[tuple[str, str, Any, tuple[str, ...]], ...] = (
    ("apply_lora", "string", "false", BOOL),
    ("merge_lora_weights", "string", "true", BOOL),
    ("lora_alpha", "integer", 128, ()),
    ("lora_r", "integer", 8, ()),
    ("lora_dropout", "number", 0.0, ()),
    ("num_train_epochs", "integer", 1, ()),
    ("max_steps", "integer", -1, ()),
    ("per_device_train_batch_size", "integer", 1, ()),
    ("per_device_eval_batch_size", "integer", 1, ()),
    ("auto_find_batch_size", "string", "false", BOOL),
    ("optim", "string", "adamw_hf", ("adamw_hf", "adamw_torch", "adafactor")),
    ("learning_rate", "number", 2e-05, ()),
    ("warmup_steps", "integer", 0, ()),
    ("weight_decay", "number", 0.0, ()),
    ("adam_beta1", "number", 0.9, ()),
    ("adam_beta2", "number", 0.999, ()),
    ("adam_epsilon", "number", 1e-08, ()),
    ("gradient_accumulation_steps", "integer", 1, ()),
    ("lr_scheduler_type", "string", "linear", SCHEDULERS),
    ("precision", "string", "32", ("32", "16")),
    ("seed", "integer", 42, ()),
    ("enable_full_determinism", "string", "false", BOOL),
    ("dataloader_num_workers", "integer", 0, ()),
    ("ignore_mismatched_sizes", "string", "true", BOOL),
    ("max_grad_norm", "number", 1.0, ()),
    ("evaluation_strategy", "string", "epoch", ("epoch", "steps")),
    ("evaluation_steps_interval", "number", 0.0, ()),
    ("eval_steps", "integer", 500, ()),
    ("logging_strategy", "string", "epoch", ("epoch", "steps")),
    ("logging_steps", "integer", 500, ()),
    ("resume_from_checkpoint", "string", "false", BOOL),
    ("save_total_limit", "integer", -1, ()),
    ("apply_early_stopping", "string", "false", BOOL),
    ("early_stopping_patience", "integer", 1, ()),
    ("early_stopping_threshold", "number", 0.0, ()),
    ("apply_deepspeed", "string", "false", BOOL),
    ("deepspeed", "uri_file", None, ()),
    ("apply_ort", "string", "false", BOOL),
    ("preprocess_output", "uri_folder", None, ()),
    ("model_selector_output", "uri_folder", None, ()),
)
OWN: dict[str, tuple[tuple[str, str, Any, tuple[str, ...]], ...]] = {
    "question_answering": (
        ("eval_accumulation_steps", "integer", 1, ()),
        ("metric_for_best_model", "string", "loss", ("loss", "f1", "exact")),
    ),
    "token_classification": (
        ("eval_accumulation_steps", "integer", -1, ()),
        ("metric_for_best_model", "string", "loss", ("loss", "f1", "accuracy", "precision", "recall")),
    ),
}
# Further optional inputs, whose defaults leave every other one its meaning.
BEYOND = {
    "preset", "keep_global_batch_size", "lr_scheduler_cycles", "lr_scheduler_power", "gradient_checkpointing",
    "torch_compile", "attn_implementation", "throughput_warmup_steps", "save_steps", "lora_type", "finetune_in_4bit",
    "deepspeed_stage", "apply_fsdp", "class_weights", "teacher_model_path", "distillation_weight",
    "distillation_temperature", "apply_pruning", "pruning_ratio", "pruning_method", "apply_qat",
    "quantization", "cpu_kernels", "padding_free", "cuda_graphs", "max_tokens_per_batch", "hang_timeout",
    "loss_spike_threshold",
}  # fmt: skip
OUTPUTS = {
    "pytorch_model_folder": "uri_folder", "mlflow_model_folder": "mlflow_model", "openvino_model_folder": "uri_folder",
}  # fmt: skip
FOLDERS = {"preprocess_output", "model_selector_output"}


def finetune_params(**changed: Any) -> QuestionAnsweringParams:
    folders = {name: Path(name) for name in (*FOLDERS, "pytorch_model_folder", "mlflow_model_folder")}
    return QuestionAnsweringParams(**{**folders, **changed})


def component(task: str) -> dict[str, Any]:
    path = ROOT / "components" / task / "finetune.yaml"
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def test_every_shared_input_in_the_order_of_the_spec() -> None:
    names = [name for name, *_ in SHARED]
    assert len(set(names)) == len(names) == 40
    for task in OWN:
        assert [p.name for p in params_of(TASKS[task].finetune) if p.name in names] == names
        assert [name for name in component(task)["inputs"] if name in names] == names


def test_nothing_besides_the_spec() -> None:
    names = {name for name, *_ in SHARED} | BEYOND
    for task, own in OWN.items():
        assert set(component(task)["inputs"]) - names == {name for name, *_ in own}


@pytest.mark.parametrize(
    ("task", "name", "kind", "default", "enum"),
    [(task, *row) for task, own in OWN.items() for row in (*SHARED, *own)],
    ids=[f"{task}-{row[0]}" for task, own in OWN.items() for row in (*SHARED, *own)],
)
def test_input(task: str, name: str, kind: str, default: Any, enum: tuple[str, ...]) -> None:
    p = next(p for p in params_of(TASKS[task].finetune) if p.name == name)
    assert ("string" if p.kind == "boolean" else p.kind, p.required, p.output) == (kind, name in FOLDERS, False)
    assert p.default_text == (None if default is None else to_text(default))

    entry = component(task)["inputs"][name]
    assert (entry["type"], entry.get("optional", False)) == (kind, name not in FOLDERS)
    assert (entry.get("default"), type(entry.get("default"))) == (default, type(default))

    for allowed in (p.enum, entry.get("enum", ())):
        assert set(enum) <= set(allowed)
        assert bool(enum) == bool(allowed)


@pytest.mark.parametrize("task", TASKS)
def test_only_the_two_folders_are_required(task: str) -> None:
    assert {p.name for p in params_of(TASKS[task].finetune) if p.required and not p.output} == FOLDERS
    assert {name for name, entry in component(task)["inputs"].items() if not entry.get("optional")} == FOLDERS


@pytest.mark.parametrize("task", TASKS)
def test_the_outputs(task: str) -> None:
    assert {p.name: p.kind for p in params_of(TASKS[task].finetune) if p.output} == OUTPUTS
    assert {name: entry["type"] for name, entry in component(task)["outputs"].items()} == OUTPUTS


@dataclass(frozen=True)
class Machine(World):
    """What a machine has, given instead of asked: all of it where nothing is said."""

    gpu: bool = True
    bf16: bool = True
    cpu_bf16: bool = True
    compiler: bool = True
    flash_attention: bool = True
    bitsandbytes: bool = True
    deepspeed: bool = True
    openvino: bool = True
    out_of_reach: str = ""

    def gpus(self) -> int:
        return 2

    def gpu_out_of_reach(self) -> str:
        return self.out_of_reach

    def has_gpu(self) -> bool:
        return self.gpu

    def gpu_name(self) -> str:
        return "Tesla V100"

    def gpu_has_bf16(self) -> bool:
        return self.bf16

    def cpu_has_bf16(self) -> bool:
        return self.cpu_bf16

    def has_compiler(self) -> bool:
        return self.compiler

    def has_flash_attention(self) -> bool:
        return self.flash_attention

    def has_bitsandbytes(self) -> bool:
        return self.bitsandbytes

    def has_deepspeed(self) -> bool:
        return self.deepspeed

    def has_openvino(self) -> bool:
        return self.openvino


BERT = ModelFacts("bert", "BertForQuestionAnswering", False, True, ("BertLayer",), True, True, False)
OUT = Path("out")
LORA_IN_4BIT: dict[str, Any] = {"apply_lora": True, "finetune_in_4bit": True}
OPENVINO: dict[str, Any] = {"openvino_model_folder": Path("openvino")}
STEPS: dict[str, Any] = {"evaluation_strategy": "steps"}


def tuned(machine: World = Machine(), model: ModelFacts | None = None, **changed: Any) -> Case[Any]:
    return Case(finetune_params(**changed), machine, known_model=model)


def scored(model: ModelFacts | None = None, **given: Any) -> Case[Any]:
    return Case(QuestionAnsweringEvaluationParams(evaluation_result=OUT, **given), known_model=model)


def exported(**given: Any) -> Case[Any]:
    return Case(ExportParams(preprocess_output=OUT, openvino_model_folder=OUT, **given))


SECRET = "https://our-keys.vault.azure.net/secrets/hub-token"
# For each row of the table, in its order: a case of it alone, and what is said.
SAMPLES: tuple[tuple[Case[Any], str], ...] = (
    (Case(ModelImportParams(output_dir=OUT)), "no model is given"),
    (
        Case(ModelImportParams(output_dir=OUT, pytorch_model_path=OUT, validation_output=OUT)),
        "validation_output has no effect: a model is looked at here",
    ),
    (
        Case(ModelImportParams(output_dir=OUT, pytorch_model_path=OUT, huggingface_revision="v1")),
        "huggingface_revision v1 has no effect: the model is not of a hub",
    ),
    (
        Case(ModelImportParams(output_dir=OUT, pytorch_model_path=OUT, huggingface_token_secret=SECRET)),
        "huggingface_token_secret has no effect, and is not read: the model is not of a hub",
    ),
    (Case(QuestionAnsweringPreprocessParams(model_selector_output=OUT, output_dir=OUT)), "there are no training rows"),
    (scored(mlflow_model_folder=OUT), "no --preprocess_output or --test_data"),
    (
        scored(test_data=OUT, mlflow_model_folder=OUT, pytorch_model_folder=OUT),
        "--mlflow_model_folder and --pytorch_model_folder are both given",
    ),
    (scored(replace(BERT, model_type="deberta"), precision="bf16"), "--precision bf16 for a deberta"),
    (tuned(eval_accumulation_steps=0), "--eval_accumulation_steps 0"),
    (
        scored(test_data=OUT, mlflow_model_folder=OUT, eval_accumulation_steps=0),
        "--eval_accumulation_steps 0",
    ),
    (exported(), "no --mlflow_model_folder or --pytorch_model_folder"),
    (
        exported(mlflow_model_folder=OUT, quantization="none", calibration_samples=9),
        "calibration_samples 9 has no effect with quantization none",
    ),
    (tuned(**STEPS, eval_steps=-1), "--evaluation_strategy steps needs --eval_steps of at least 1, not -1"),
    (tuned(lr_scheduler_type="polynomial", learning_rate=0.0), "--lr_scheduler_type polynomial falls from"),
    (tuned(loss_spike_threshold=0.5), "--loss_spike_threshold 0.5 takes every other step for a spike"),
    (tuned(Machine(2), apply_deepspeed=True, apply_fsdp=True), "--apply_deepspeed true and --apply_fsdp true are two"),
    (tuned(quantization="ptq"), "--quantization ptq has no folder to write to"),
    (tuned(quantization="qat", **OPENVINO), "--quantization qat has no ranges that were learnt"),
    (tuned(**LORA_IN_4BIT, lora_type="dora"), "--finetune_in_4bit true with --lora_type dora"),
    (
        tuned(max_tokens_per_batch=4096, auto_find_batch_size=True),
        "--auto_find_batch_size true with --max_tokens_per_batch 4096",
    ),
    (
        Case(finetune_params(apply_deepspeed=True, auto_find_batch_size=True), Machine(), zero_stage=3),
        "--auto_find_batch_size true with ZeRO-3",
    ),
    (tuned(apply_deepspeed=True, **LORA_IN_4BIT), "--finetune_in_4bit true with DeepSpeed"),
    (tuned(apply_deepspeed=True, torch_compile=True), "--torch_compile true with DeepSpeed"),
    (tuned(Machine(2), apply_fsdp=True, auto_find_batch_size=True), "--auto_find_batch_size true with FSDP"),
    (tuned(Machine(2), apply_fsdp=True, **LORA_IN_4BIT), "--finetune_in_4bit true with FSDP"),
    (tuned(apply_deepspeed=True, teacher_model_path=Path("t")), "--teacher_model_path with DeepSpeed or FSDP"),
    (tuned(loss_spike_threshold=5.0, apply_deepspeed=True), "--loss_spike_threshold with DeepSpeed, FSDP or"),
    (tuned(apply_pruning=True, apply_deepspeed=True), "--apply_pruning true with DeepSpeed or FSDP"),
    (tuned(apply_pruning=True, apply_lora=True), "--apply_pruning true with --apply_lora true"),
    (tuned(apply_pruning=True, precision="16"), "--apply_pruning true with --precision 16"),
    (tuned(apply_pruning=True, torch_compile=True), "--apply_pruning true with --torch_compile true"),
    (tuned(apply_qat=True, apply_deepspeed=True), "--apply_qat true with DeepSpeed or FSDP"),
    (tuned(apply_qat=True, apply_lora=True), "--apply_qat true with --apply_lora true"),
    (tuned(apply_qat=True, precision="16"), "--apply_qat true with --precision 16"),
    (tuned(apply_qat=True, torch_compile=True), "--apply_qat true with --torch_compile true"),
    (
        tuned(padding_free="always", attn_implementation="eager"),
        "--padding_free always with --attn_implementation eager",
    ),
    (tuned(padding_free="always", torch_compile=True), "--padding_free always with --torch_compile true"),
    (tuned(padding_free="always", apply_ort=True), "--padding_free always with --apply_ort true"),
    (tuned(cuda_graphs=True), "--cuda_graphs true with --precision 32"),
    *(
        (tuned(*machine, cuda_graphs=True, precision="bf16", **given), f"--cuda_graphs true with --{words}")
        for words, given, *machine in (
            ("padding_free never", {"padding_free": "never"}),
            ("attn_implementation sdpa", {"attn_implementation": "sdpa"}),
            ("apply_ort true", {"apply_ort": True}),
            ("apply_deepspeed true", {"apply_deepspeed": True}),
            ("apply_fsdp true", {"apply_fsdp": True}, Machine(2)),
            ("finetune_in_4bit true", LORA_IN_4BIT),
            ("gradient_checkpointing true", {"gradient_checkpointing": True}),
            ("apply_pruning true", {"apply_pruning": True}),
            ("apply_qat true", {"apply_qat": True}),
        )
    ),
    (
        tuned(Machine(gpu=False, out_of_reach="PyTorch 2 is built for CPUs alone")),
        "the GPU of this machine can't be used, and training on its CPU would take many times as long\n  why: PyTorch",
    ),
    (tuned(Machine(4, 4, launched=True)), "4 processes on a machine with 2 GPUs"),
    (tuned(Machine(deepspeed=False), apply_deepspeed=True), "--apply_deepspeed true\n  why: the package deepspeed"),
    (
        tuned(Machine(openvino=False), quantization="ptq", **OPENVINO),
        "--quantization ptq\n  why: the packages",
    ),
    (tuned(Machine(gpu=False), precision="16"), "--precision 16\n  why: fp16 needs a GPU"),
    (tuned(Machine(bf16=False), precision="bf16"), "--precision bf16\n  why: Tesla V100 has no bf16"),
    (
        tuned(Machine(gpu=False, cpu_bf16=False), precision="bf16"),
        "precision bf16 is slower here than 32: this processor has no instructions for it",
    ),
    (tuned(Machine(gpu=False, compiler=False), torch_compile=True), "--torch_compile true\n  why: torch.compile needs"),
    (
        tuned(Machine(flash_attention=False), attn_implementation="flash_attention_2"),
        "--attn_implementation flash_attention_2\n  why: it needs an NVIDIA GPU",
    ),
    (
        tuned(attn_implementation="flash_attention_2"),
        "--attn_implementation flash_attention_2\n  why: FlashAttention computes in 16 bits alone",
    ),
    (tuned(Machine(gpu=False), **LORA_IN_4BIT), "--finetune_in_4bit true\n  why: no GPU is visible here"),
    (tuned(Machine(bitsandbytes=False), **LORA_IN_4BIT), "--finetune_in_4bit true\n  why: it needs the package"),
    (tuned(Machine(2, gpu=False), apply_fsdp=True), "--apply_fsdp true\n  why: no GPU is visible here"),
    (tuned(apply_fsdp=True), "--apply_fsdp true\n  why: there is one process"),
    (tuned(model=replace(BERT, model_type="deberta"), precision="16"), "--precision 16 for a deberta"),
    (
        tuned(model=replace(BERT, supports_gradient_checkpointing=False), gradient_checkpointing=True),
        "--gradient_checkpointing true\n  why: transformers can't compute the layers of BertForQuestionAnswering again",
    ),
    (
        tuned(model=replace(BERT, has_linear_layers=False), apply_lora=True),
        "--apply_lora true\n  why: a bert has no linear layers",
    ),
    (
        tuned(model=replace(BERT, model_type="t5", is_encoder_decoder=True), apply_fsdp=True),
        "--apply_fsdp true\n  why: encoder and decoder of a t5 share weights",
    ),
    (
        tuned(model=replace(BERT, sharded_layers=()), apply_fsdp=True),
        "--apply_fsdp true\n  why: transformers does not name the layers of a bert",
    ),
    (
        tuned(model=replace(BERT, model_type="albert", has_blocks=False), apply_pruning=True),
        "--apply_pruning true\n  why: which blocks of this model type (albert) can be cut is not known",
    ),
    (
        tuned(model=replace(BERT, model_type="albert", has_blocks=False), apply_qat=True),
        "--apply_qat true\n  why: which layers of this model type (albert) are to be rounded is not known",
    ),
    (
        tuned(model=replace(BERT, model_type="albert", not_exported="it is too new"), quantization="ptq", **OPENVINO),
        "--quantization ptq for this model type (albert)\n  why: it is too new",
    ),
    (
        tuned(model=replace(BERT, model_type="mpnet", needs_padding=True), padding_free="always"),
        "--padding_free always\n  why: that this model type (mpnet) computes the same without padding is not proved",
    ),
    (tuned(merge_lora_weights=False), "merge_lora_weights false has no effect with apply_lora false"),
    (tuned(lora_alpha=16), "lora_alpha 16 has no effect with apply_lora false"),
    (tuned(lora_r=16), "lora_r 16 has no effect with apply_lora false"),
    (tuned(lora_dropout=0.1), "lora_dropout 0.1 has no effect with apply_lora false"),
    (tuned(lora_type="dora"), "lora_type dora has no effect with apply_lora false"),
    (tuned(finetune_in_4bit=True), "finetune_in_4bit true has no effect with apply_lora false"),
    (tuned(early_stopping_patience=3), "early_stopping_patience 3 has no effect with apply_early_stopping false"),
    (tuned(early_stopping_threshold=0.1), "early_stopping_threshold 0.1 has no effect with apply_early_stopping false"),
    (tuned(eval_steps=10), "eval_steps 10 has no effect with evaluation_strategy epoch"),
    (
        tuned(evaluation_steps_interval=0.5),
        "evaluation_steps_interval 0.5 has no effect with evaluation_strategy epoch",
    ),
    (tuned(logging_steps=10), "logging_steps 10 has no effect with logging_strategy epoch"),
    (tuned(adam_beta1=0.5, optim="adafactor"), "adam_beta1 0.5 has no effect with optim adafactor"),
    (tuned(adam_beta2=0.5, optim="adafactor"), "adam_beta2 0.5 has no effect with optim adafactor"),
    (tuned(adam_epsilon=0.5, optim="adafactor"), "adam_epsilon 0.5 has no effect with optim adafactor"),
    (tuned(deepspeed=Path("zero2.json")), "deepspeed zero2.json has no effect with apply_deepspeed false"),
    (tuned(deepspeed_stage="3"), "deepspeed_stage 3 has no effect with apply_deepspeed false"),
    (
        tuned(warmup_steps=9, lr_scheduler_type="constant"),
        "warmup_steps 9 has no effect with lr_scheduler_type constant",
    ),
    (tuned(lr_scheduler_cycles=2), "lr_scheduler_cycles 2 has no effect with lr_scheduler_type linear"),
    (tuned(lr_scheduler_power=2.0), "lr_scheduler_power 2.0 has no effect with lr_scheduler_type linear"),
    (tuned(keep_global_batch_size=True), "keep_global_batch_size true has no effect with auto_find_batch_size false"),
    (
        tuned(max_tokens_per_batch=4096, per_device_train_batch_size=8),
        "per_device_train_batch_size 8 has no effect with max_tokens_per_batch 4096",
    ),
    (tuned(pruning_ratio=0.5), "pruning_ratio 0.5 has no effect with apply_pruning false"),
    (tuned(pruning_method="taylor"), "pruning_method taylor has no effect with apply_pruning false"),
    (tuned(distillation_weight=0.9), "distillation_weight has no effect without teacher_model_path"),
    (tuned(distillation_temperature=4.0), "distillation_temperature has no effect without teacher_model_path"),
    (
        tuned(**STEPS, evaluation_steps_interval=0.5, eval_steps=9),
        "eval_steps 9 has no effect with evaluation_steps_interval",
    ),
    (
        tuned(apply_deepspeed=True, deepspeed=Path("zero2.json"), deepspeed_stage="3"),
        "deepspeed_stage 3 has no effect with deepspeed: the config says it",
    ),
    (tuned(num_train_epochs=3, max_steps=100), "num_train_epochs 3 has no effect with max_steps 100"),
)


@pytest.mark.parametrize(
    ("rule", "case", "said"),
    [(rule, *sample) for rule, sample in zip(RULES, SAMPLES, strict=True)],
    ids=[said.splitlines()[0] for _, said in SAMPLES],
)
def test_a_row_fires_for_its_case_and_no_other_does(rule: Rule[Any], case: Case[Any], said: str) -> None:
    assert firing(case) == [rule]
    fault = rule.fault(case)
    assert str(fault).startswith(said)
    if rule.kind is None:
        assert (notes(case), errors(case)) == ([said], []) and not fault.why and not fault.fix
    else:
        (error,) = errors(case)
        assert type(error) is rule.kind and error.faults == (fault,) and fault.fix
        assert fault.why or rule.kind is ParameterError


@pytest.mark.parametrize("machine", [World(), Machine(), Machine(2, 2), Machine(1, 1, *7 * [False])], ids=str)
def test_defaults_go_together_everywhere(machine: World) -> None:
    """And so do the other components, with what they need."""
    assert firing(tuned(machine)) == firing(tuned(machine, BERT)) == []
    preprocess = QuestionAnsweringPreprocessParams(model_selector_output=OUT, output_dir=OUT, dataset_name="squad")
    assert firing(Case(ModelImportParams(output_dir=OUT, huggingface_id="x"), machine)) == []
    assert firing(Case(preprocess, machine)) == []
    assert firing(scored(test_data=OUT, mlflow_model_folder=OUT)) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.1, "lora_type": "dora", "merge_lora_weights": False,
         "apply_lora": True},
        {**LORA_IN_4BIT},
        {"eval_steps": 10, **STEPS},
        {"evaluation_steps_interval": 0.5, **STEPS},
        {"logging_steps": 10, "logging_strategy": "steps"},
        {"early_stopping_patience": 3, "early_stopping_threshold": 0.1, "apply_early_stopping": True},
        {"lr_scheduler_cycles": 2, "lr_scheduler_type": "cosine_with_restarts"},
        {"lr_scheduler_power": 2.0, "lr_scheduler_type": "polynomial"},
        {"warmup_steps": 9},
        {"keep_global_batch_size": True, "auto_find_batch_size": True},
        {"deepspeed": Path("zero2.json"), "apply_deepspeed": True},
        {"deepspeed_stage": "3", "apply_deepspeed": True},
        {"adam_beta1": 0.5, "adam_beta2": 0.5, "adam_epsilon": 0.5, "optim": "adamw_torch"},
        {"num_train_epochs": 3},
        {"max_steps": 100},
        {"precision": "16"},
        {"precision": "bf16", "attn_implementation": "flash_attention_2", "torch_compile": True},
        {"gradient_checkpointing": True},
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_goes_together(changed: dict[str, Any]) -> None:
    assert firing(tuned(**changed)) == firing(tuned(model=BERT, **changed)) == []


@pytest.mark.parametrize("steps", [0, -1])
def test_eval_steps_below_one_matter_only_where_they_are_used(steps: int) -> None:
    assert errors(tuned(eval_steps=steps)) == []
    assert errors(tuned(**STEPS, eval_steps=steps, evaluation_steps_interval=0.5)) == []
    assert len(errors(tuned(**STEPS, eval_steps=steps))) == 1


def test_all_rows_at_once() -> None:
    changed: dict[str, Any] = {"lora_r": 16, "eval_steps": 10, "adam_beta1": 0.5, "optim": "adafactor"}
    found = [line.split()[0] for line in notes(tuned(**changed, num_train_epochs=3, max_steps=9))]
    assert found == ["lora_r", "eval_steps", "adam_beta1", "num_train_epochs"]
    kinds = [type(error) for error in errors(tuned(**STEPS, eval_steps=0, apply_fsdp=True))]
    assert kinds == [ParameterError, UnsupportedError]
