"""How each parameter of each component is proved: what is typed, and what is then seen in the run itself.

A row gives a parameter a value away from its default and names the effect. Every row is run through the component's
command line by test_proofs.py; docs/parameters.md and `python -m tools.parameters --proofs` come from these rows too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.params.components import TASKS
from finetune.params.datapreprocess import QuestionAnsweringColumns, TokenClassificationColumns
from finetune.params.schema import params_of
from tests.proofs import effects as see
from tests.proofs.effects import Effect

QA, TC, TR = "question_answering", "token_classification", "translation"
GQ = "generative_question_answering"
WRITING = (GQ, TR)
LONGEST_ANSWER = 48  # tokens, of the bench
Words = Mapping[str, Any]


@dataclass(frozen=True)
class Proof:
    """One row. `given` is what is typed, `base` what the run it is compared with has besides."""

    parameter: str
    shown: str  # the effect in words
    given: Words = field(default_factory=dict)
    effect: Effect | None = None
    base: Words = field(default_factory=dict)
    refused: tuple[int, str] | None = None  # exit code and message, in place of an effect
    only_without_gpu: bool = False  # refused there alone
    elsewhere: str = ""  # the test, where it takes more than a command line
    tasks: tuple[str, ...] = tuple(TASKS)
    thorough: bool = False  # another value, or a dearer task, of a parameter that has a row besides

    def test(self, component: str, task: str) -> str:
        """The test that pytest runs for the row."""
        return self.elsewhere or f"tests/proofs/test_proofs.py::test_proof[{self.name(component, task)}]"

    def name(self, component: str, task: str) -> str:
        value = str(self.given.get(self.parameter, ""))
        return "-".join([task, component, self.parameter] + ([value] if value and "{" not in value else []))


STEPS = {"evaluation_strategy": "steps"}
LORA = {"apply_lora": "true"}
ADAMW = "every step is AdamW's written by hand with this value, and isn't with the default's"
SCHEDULE = "the steps move the weights by the learning rate of the formula"
RUN = "tests/test_run.py::"

FINETUNE = (
    Proof(
        "preset",
        "bert-base: rate, epochs, batches and number format of the first step are the recommended ones",
        {
            "preset": "bert-base",
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "learning_rate": 2e-5,
        },
        see.runs_as_recommended,
        tasks=(QA, GQ, TC),
    ),
    Proof(
        "preset",
        "bert-base: rate, epochs, batches and number format of the first step are the recommended ones",
        {
            "preset": "bert-base",
            "num_train_epochs": 5,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 2e-5,
        },
        see.runs_as_recommended,
        tasks=(TR,),
        thorough=True,
    ),
    Proof("apply_lora", "the optimizer holds adapters and head, nothing else", LORA, see.trains_adapters_and_head),
    Proof(
        "merge_lora_weights",
        "the folder holds the adapter and, beside it, the frozen model",
        {"merge_lora_weights": "false"},
        see.leaves("adapter_model.safetensors", "base_model/model.safetensors"),
        LORA,
    ),
    Proof(
        "lora_alpha",
        "merged weights are the frozen ones + lora_alpha / lora_r x B A",
        {"lora_alpha": 32},
        see.adapters_scaled_by(32 / 8),
        LORA,
    ),
    Proof("lora_r", "the rank of the adapters that the optimizer holds", {"lora_r": 4}, see.adapters_of(4), LORA),
    Proof(
        "lora_dropout",
        "that share of zeros before the adapters, in training",
        {"lora_dropout": 0.4},
        see.drops_before_adapters(0.4),
        LORA,
    ),
    Proof("lora_type", "dora's magnitudes are trained", {"lora_type": "dora"}, see.trains_magnitudes, LORA),
    Proof(
        "lora_type",
        "merged by rslora, weights are the frozen ones + lora_alpha / sqrt(lora_r) x B A",
        {"lora_type": "rslora"},
        see.adapters_scaled_by(128 / 8**0.5),
        LORA,
    ),
    Proof(
        "finetune_in_4bit",
        "frozen layers hold half a byte for each weight, and are saved as they were imported",
        elsewhere="tests/models/adapt/test_four_bit.py::test_a_run",
    ),
    Proof(
        "finetune_in_4bit",
        "refused without a GPU, with the reason",
        {"finetune_in_4bit": "true"},
        see.says_so("4 bits: "),
        LORA,
        refused=(6, "on a CPU bitsandbytes packs 4-bit weights"),
        only_without_gpu=True,
    ),
    Proof("num_train_epochs", "every window is trained on so often", {"num_train_epochs": 2}, see.windows_seen(2)),
    Proof("max_steps", "so many steps of the optimizer", {"max_steps": 3}, see.steps_taken(3)),
    Proof(
        "per_device_train_batch_size",
        "windows in a forward pass of training",
        {"per_device_train_batch_size": 5},
        see.windows_in_training(5),
    ),
    Proof(
        "max_tokens_per_batch",
        "tokens and windows in a forward pass of training",
        {"max_tokens_per_batch": 384},
        see.tokens_in_training(384),
    ),
    Proof(
        "per_device_eval_batch_size",
        "windows in a forward pass of evaluation",
        {"per_device_eval_batch_size": 5},
        see.windows_in_evaluation(5),
    ),
    Proof(
        "auto_find_batch_size",
        "in a process of too little memory, the weights are bit for bit those of a run begun with the batch it found",
        elsewhere="tests/training/test_batch_search.py::test_batch_is_halved_where_memory_runs_out",
    ),
    Proof(
        "keep_global_batch_size",
        "the same, of a run begun with that batch and so many accumulation steps that a step has the windows asked for",
        elsewhere="tests/training/test_batch_search.py::test_batch_is_halved_where_memory_runs_out",
    ),
    *(
        Proof(
            "optim",
            f"every step is {name}'s written by hand; biases and norms don't decay",
            {"optim": value},
            see.optimizer_is(kind),
            {"weight_decay": 0.1},
        )
        for value, name, kind in (
            ("adamw_hf", "AdamW", "AdamW"),
            ("adamw_torch", "AdamW", "AdamW"),
            ("adafactor", "Adafactor", "Adafactor"),
        )
    ),
    Proof("learning_rate", ADAMW, {"learning_rate": 3e-3}, see.written_by_hand),
    Proof("warmup_steps", SCHEDULE, {"warmup_steps": 3}, see.written_by_hand),
    Proof("weight_decay", ADAMW, {"weight_decay": 0.3}, see.written_by_hand),
    Proof("adam_beta1", ADAMW, {"adam_beta1": 0.5}, see.written_by_hand),
    Proof("adam_beta2", ADAMW, {"adam_beta2": 0.5}, see.written_by_hand),
    Proof("adam_epsilon", ADAMW, {"adam_epsilon": 0.01}, see.written_by_hand),
    Proof(
        "gradient_accumulation_steps",
        "forward passes before a step of the optimizer",
        {"gradient_accumulation_steps": 2},
        see.passes_in_a_step(2),
    ),
    Proof(
        "lr_scheduler_type", SCHEDULE, {"lr_scheduler_type": "linear", "warmup_steps": 2}, see.schedule_is_its_formula
    ),
    Proof("lr_scheduler_type", SCHEDULE, {"lr_scheduler_type": "cosine", "warmup_steps": 2}, see.written_by_hand),
    Proof(
        "lr_scheduler_type",
        SCHEDULE,
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_cycles": 2, "warmup_steps": 1},
        see.written_by_hand,
    ),
    Proof(
        "lr_scheduler_type",
        SCHEDULE,
        {"lr_scheduler_type": "polynomial", "lr_scheduler_power": 2, "warmup_steps": 2},
        see.written_by_hand,
    ),
    Proof("lr_scheduler_type", SCHEDULE, {"lr_scheduler_type": "constant"}, see.written_by_hand),
    Proof(
        "lr_scheduler_type",
        SCHEDULE,
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
        see.written_by_hand,
    ),
    Proof(
        "lr_scheduler_cycles",
        SCHEDULE,
        {"lr_scheduler_cycles": 3},
        see.written_by_hand,
        {"lr_scheduler_type": "cosine_with_restarts"},
    ),
    Proof(
        "lr_scheduler_power",
        SCHEDULE,
        {"lr_scheduler_power": 3},
        see.written_by_hand,
        {"lr_scheduler_type": "polynomial"},
    ),
    Proof(
        "precision",
        "linear layers give bf16; weights and gradients stay in 32 bits",
        {"precision": "bf16"},
        see.computes_in("bfloat16"),
    ),
    Proof(
        "precision",
        "refused without a GPU, where bf16 is offered; on one, linear layers give fp16",
        {"precision": "16"},
        see.computes_in("float16"),
        refused=(6, "fix: --precision bf16"),
        only_without_gpu=True,
    ),
    Proof("seed", "other rows in the first batch, another new head", {"seed": 7}, see.other_order_and_head),
    Proof(
        "enable_full_determinism",
        "each step runs with deterministic kernels alone; the same weights bit for bit",
        {"enable_full_determinism": "true"},
        see.deterministic,
    ),
    Proof(
        "dataloader_num_workers",
        "so many processes beside each step; the same weights bit for bit",
        {"dataloader_num_workers": 2},
        see.worker_processes(2),
    ),
    Proof(
        "ignore_mismatched_sizes",
        "a head of another size is refused, and the message names it",
        elsewhere=f"{RUN}test_mismatched_head_is_an_error_if_asked",
    ),
    Proof(
        "max_grad_norm",
        "the norm of the gradient that the optimizer gets",
        {"max_grad_norm": 0.1},
        see.gradient_norm_is(0.1),
    ),
    Proof("max_grad_norm", "0 leaves the norm as it is", {"max_grad_norm": 0}, see.gradient_norm_above(1.0)),
    Proof(
        "gradient_checkpointing",
        "every layer is computed twice in a step; the same weights to 1e-5",
        {"gradient_checkpointing": "true"},
        see.layers_computed_twice,
    ),
    Proof(
        "torch_compile",
        "PyTorch has compiled graphs; the losses are those of the run without, to 1e-4",
        elsewhere="tests/training/test_compile.py::test_compiled",
    ),
    Proof(
        "attn_implementation",
        "PyTorch's fused attention isn't called",
        {"attn_implementation": "eager"},
        see.fused_attention(False),
    ),
    Proof(
        "attn_implementation",
        "PyTorch's fused attention is called in every pass",
        {"attn_implementation": "sdpa"},
        see.fused_attention(True),
    ),
    Proof(
        "attn_implementation",
        "refused without a GPU and flash-attn, and in 32 bits",
        {"attn_implementation": "flash_attention_2"},
        refused=(6, "not supported: --attn_implementation flash_attention_2"),
    ),
    Proof(
        "cpu_kernels",
        "PyTorch's fused attention is called in training too, and not in evaluation alone",
        {"cpu_kernels": "false"},
        see.fused_in_training,
        tasks=(QA, TC),
    ),
    Proof(
        "padding_free",
        "training steps compute the same tokens as one row, and no padding",
        {"padding_free": "always"},
        see.no_padding_in_training,
        tasks=(QA, TC),
    ),
    Proof(
        "cuda_graphs",
        "without a GPU, a line says that passes are not recorded; with one, tests/models/kernels/test_cuda_graphs.py",
        {"cuda_graphs": "true", "precision": "bf16"},
        see.says("cuda_graphs: not used (there is no GPU)"),
        base={"precision": "bf16"},
        tasks=(QA, TC),
    ),
    Proof(
        "throughput_warmup_steps",
        "samples per second x seconds are the windows of the other steps",
        {"throughput_warmup_steps": 2},
        see.speed_leaves_out(2),
    ),
    Proof(
        "evaluation_strategy",
        "evaluated after these steps",
        {"evaluation_strategy": "steps"},
        see.evaluated_after([4, 6]),
        {"eval_steps": 4},
    ),
    Proof(
        "evaluation_steps_interval",
        "evaluated after this share of an epoch's steps, rounded",
        {"evaluation_steps_interval": 0.3},
        see.evaluated_after([2, 4, 6]),
        {**STEPS, "eval_steps": 5},
    ),
    Proof(
        "evaluation_steps_interval",
        "refused where it is 0 and eval_steps is not above 0",
        {"eval_steps": 0},
        base=STEPS,
        refused=(2, "--evaluation_steps_interval 0.5"),
    ),
    Proof(
        "eval_steps",
        "evaluated after so many steps",
        {"eval_steps": 3},
        see.evaluated_after([3, 6]),
        {**STEPS, "eval_steps": 5},
    ),
    Proof(
        "eval_steps",
        "refused where no evaluation falls into the run",
        {"eval_steps": 7},
        base=STEPS,
        refused=(2, "fix: --eval_steps 3"),
    ),
    Proof(
        "logging_strategy",
        "the loss is shown and logged after these steps",
        {"logging_strategy": "steps"},
        see.logged_after([4]),
        {"logging_steps": 4},
    ),
    Proof(
        "logging_steps",
        "the loss is shown and logged after so many steps",
        {"logging_steps": 2},
        see.logged_after([2, 4, 6]),
        {"logging_strategy": "steps", "logging_steps": 5},
    ),
    *(
        Proof(
            "metric_for_best_model",
            f"the saved model is the checkpoint with the highest {metric}, not that with the lowest loss",
            {"metric_for_best_model": metric},
            see.best_is_highest(metric),
            {"num_train_epochs": 5, "learning_rate": 1e-5},
            tasks=(task,),
            thorough=(task, metric) not in ((QA, "f1"), (TC, "f1")),
        )
        for task, metrics in (
            (QA, ("f1", "exact")),
            (GQ, ("f1", "exact")),
            (TC, ("f1", "accuracy", "precision", "recall")),
            (TR, ("bleu", "chrf")),
        )
        for metric in metrics
    ),
    Proof(
        "label_smoothing_factor",
        "the losses are those of a plain loop with torch.nn.CrossEntropyLoss(label_smoothing=…)",
        elsewhere="tests/invariant/test_writing.py::test_label_smoothing",
        tasks=WRITING,
    ),
    *(
        Proof(
            name,
            "the losses are those of a plain loop with the textbook's loss and this teacher, weight and temperature",
            elsewhere="tests/invariant/test_teaching.py::test_plain_loop",
        )
        for name in ("teacher_model_path", "distillation_weight", "distillation_temperature")
    ),
    Proof(
        "apply_pruning",
        "the saved model has smaller layers, by the share of their weights that was asked for",
        elsewhere="tests/invariant/test_pruned.py::test_from_training_to_answers",
        tasks=(QA, TC),
    ),
    Proof(
        "pruning_ratio",
        "the saved model has smaller layers, by the share of their weights that was asked for",
        elsewhere="tests/invariant/test_pruned.py::test_from_training_to_answers",
        tasks=(QA, TC),
    ),
    Proof(
        "pruning_method",
        "scores are sums of squared gradients of the gates, or steps of an optimizer of their own",
        elsewhere="tests/invariant/test_pruned.py::test_what_scores_are",
        tasks=(QA, TC),
    ),
    Proof(
        "apply_qat",
        "the weights of the checkpoint that was measured with rounding are saved, and the ranges that it learnt",
        elsewhere="tests/invariant/test_quantised.py::test_what_is_saved",
        tasks=(QA, TC),
    ),
    *(
        Proof(
            name,
            f"the OpenVINO model is written after training, {what}; without, nothing is",
            elsewhere=f"tests/test_export.py::{test}",
            tasks=tasks,
        )
        for name in ("quantization", "openvino_model_folder")
        for tasks, test, what in (
            ((QA, TC), "test_after_training", "with the ranges that were asked for"),
            (WRITING, "test_after_training_a_model_that_writes", "in 32 bits or with weights in INT8"),
        )
    ),
    *(
        Proof(
            "class_weights",
            "each step's gradient of the head is that of torch.nn.CrossEntropyLoss(weight=…) over all its words",
            {"class_weights": value},
            see.weighs_classes(power),
            {"max_grad_norm": 0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            tasks=(TC,),
        )
        for value, power in (("balanced", 1.0), ("sqrt", 0.5))
    ),
    Proof(
        "eval_accumulation_steps",
        "the results of so many batches of an evaluation move to the CPU together",
        {"eval_accumulation_steps": 3},
        see.moved_to_the_cpu_together(3),
        {"per_device_eval_batch_size": 2, "eval_accumulation_steps": 1},
    ),
    Proof(
        "eval_accumulation_steps",
        "the results of all batches of an evaluation move to the CPU together",
        {"eval_accumulation_steps": -1},
        see.all_moved_to_the_cpu_together,
        {"per_device_eval_batch_size": 2, "eval_accumulation_steps": 1},
    ),
    Proof(
        "resume_from_checkpoint",
        "a finished run whose last checkpoints are gone goes on from the one before, to the same weights bit for bit",
        elsewhere="tests/training/test_best_model.py::test_resumed_with_the_best_of_before",
    ),
    Proof(
        "hang_timeout",
        "a stopped process ends the run after that time, with exit code 10 and its name",
        elsewhere="tests/distributed/hangs/test_runs.py::test_sigstop_of_a_rank",
    ),
    Proof(
        "loss_spike_threshold",
        "a run with rows of a large loss ends with the weights, bit for bit, of one whose steps with them are left out",
        elsewhere="tests/training/losses/test_runs.py::test_a_spike_is_left_out",
    ),
    Proof(
        "save_total_limit",
        "on disk are the best checkpoint, of any age, and the newest",
        elsewhere="tests/training/test_best_model.py::test_the_best_is_kept",
    ),
    Proof(
        "save_steps",
        "checkpoints on disk: after so many steps and the last, and of the best evaluations",
        {"save_steps": 4},
        see.checkpoints_every(4),
        {**STEPS, "eval_steps": 1, "num_train_epochs": 2, "learning_rate": 0},  # of equal losses the first is best
    ),
    Proof(
        "apply_early_stopping",
        "evaluations held before it stops",
        {"apply_early_stopping": "true"},
        see.evaluations_held(2),
        {"num_train_epochs": 4, "learning_rate": 0},
    ),
    Proof(
        "early_stopping_patience",
        "evaluations held before it stops",
        {"early_stopping_patience": 2, "apply_early_stopping": "true"},
        see.evaluations_held(3),
        {"num_train_epochs": 4, "learning_rate": 0},
    ),
    Proof(
        "early_stopping_threshold",
        "evaluations held before it stops, since no improvement is large enough",
        {"early_stopping_threshold": 9},
        see.evaluations_held(2),
        {"num_train_epochs": 4, "apply_early_stopping": "true"},
    ),
    Proof(
        "apply_deepspeed",
        "two processes give the losses, norms, metrics and weights of one without DeepSpeed",
        elsewhere="tests/invariant/test_loss.py::test_cut_up_steps",
    ),
    Proof(
        "deepspeed_stage",
        "the checkpoints are sharded as ZeRO-2 and ZeRO-3 do it, and give the model that is saved",
        elsewhere="tests/distributed/test_zero_runs.py::test_the_best_is_saved_whole_and_in_32_bits",
    ),
    Proof(
        "deepspeed",
        "its values are used, or said beside the parameter that wins",
        elsewhere="tests/distributed/test_zero_config.py::test_what_both_say_side_by_side",
    ),
    Proof(
        "deepspeed",
        "said to have no effect without apply_deepspeed; the same weights bit for bit",
        {"deepspeed": "{files}/zero2.json"},
        see.says("zero2.json has no effect with apply_deepspeed"),
    ),
    Proof("apply_fsdp", "refused without a GPU", {"apply_fsdp": "true"}, refused=(6, "fix: --apply_fsdp false")),
    Proof(
        "apply_ort",
        "where ONNX Runtime can't train, said to be PyTorch instead; the same weights bit for bit",
        {"apply_ort": "true"},
        see.says("warning: apply_ort: False ("),
    ),
    Proof(
        "apply_ort",
        "in the environment of .[ort] a step's outputs are those of its graph; the same losses, to 1e-4",
        elsewhere="tests/models/ort/test_runs.py::test_the_losses_of_each_step_are_pytorchs",
    ),
    Proof(
        "preprocess_output",
        "the rows of the training batches are its windows, each once",
        effect=see.trains_on_its_windows,
    ),
    Proof(
        "model_selector_output",
        "the weights before the first step are the imported ones",
        effect=see.begins_with_the_imported_weights,
    ),
    Proof(
        "pytorch_model_folder",
        "holds the model and its checkpoints",
        effect=see.holds("model.safetensors", "config.json", "tokenizer.json", "checkpoint-6/complete"),
    ),
    Proof(
        "mlflow_model_folder",
        "holds the MLflow model",
        effect=see.holds("MLmodel", "conda.yaml", "artifacts/*/*.safetensors"),
    ),
)

OTHER = "{files}/other.jsonl"
SCORED = {"preprocess_output": None, "test_data": OTHER}


def columns(task: str, effect: Effect, files: dict[str, str], base: Words) -> tuple[Proof, ...]:
    """A row for each name of a column, on files in which only that column is renamed."""
    return tuple(
        Proof(
            parameter,
            "the same rows are read from files in which the column has this name",
            {
                parameter: f"other_{column}",
                **{port: f"{{files}}/{parameter}/{name}" for port, name in files.items()},
            },
            effect,
            {
                **base,
                **({port: f"{{files}}/spans/{name}" for port, name in files.items()} if parameter in SPANS else {}),
            },
            tasks=(task,),
        )
        for parameter, column in columns_of(task).items()
    )


def columns_of(task: str) -> dict[str, str]:
    """The parameters that name a column, and its name in the sample."""
    if task == TR:
        return {"source_key": "en", "target_key": "tav"}
    found = {p.name: SPANS.get(p.name, p.default) for p in params_of(COLUMNS[task])}
    return {name: column for name, column in found.items() if task != GQ or name != "answer_start_key"}


SPANS = {"text_key": "text", "spans_key": "entities"}  # the columns of files of texts and spans
TWO_OF_EACH = '["exact_match", "f1_score", "f1_score_micro", "f1_score_macro", "bleu_1", "bleu_2"]'
COLUMNS = {QA: QuestionAnsweringColumns, GQ: QuestionAnsweringColumns, TC: TokenClassificationColumns}
FILES = {f"{name}_file_path": f"{name}.jsonl" for name in ("train", "validation", "test")}
FLAT_FILES = {"max_dropped_fraction": 1, **{port: f"{{files}}/flat/{name}" for port, name in FILES.items()}}
MODEL_IMPORT = (
    Proof(
        "huggingface_id",
        "the imported weights are those of the folder named",
        {"huggingface_id": "{other_model}", "pytorch_model_path": None},
        see.imports_its_weights,
    ),
    Proof(
        "huggingface_revision",
        "the imported weights are those of that revision",
        elsewhere="tests/test_model_selector.py::test_a_revision_of_a_hub_model",
    ),
    Proof(
        "huggingface_token_secret",
        "a gated model is fetched with the token of that secret, which is nowhere else",
        elsewhere="tests/test_model_selector.py::test_a_gated_model_by_a_secret",
    ),
    Proof(
        "pytorch_model_path",
        "the imported weights are those of the folder, though another model is named too",
        {"pytorch_model_path": "{other_model}", "mlflow_model_path": "{trained}/mlflow"},
        see.imports_its_weights,
    ),
    Proof(
        "mlflow_model_path",
        "the imported weights are those inside the MLflow model",
        {"mlflow_model_path": "{trained}/mlflow", "pytorch_model_path": None},
        see.imports_its_weights,
    ),
    Proof(
        "validation_output",
        "said to have no effect",
        {"validation_output": "{files}"},
        see.says_so("validation_output has no effect"),
    ),
    Proof(
        "output_dir",
        "holds the model and what is known of it",
        effect=see.holds("model_selector_args.json", "model/model.safetensors", "model/tokenizer.json"),
    ),
)
DATAPREPROCESS = (
    *columns(QA, see.same_rows, FILES, {}),
    *columns(GQ, see.same_rows, FILES, {}),
    Proof(
        "answer_start_key",
        "rows without text whose column of this name holds -1 have no answer, and are not without gold",
        {"answer_start_key": "place"},
        see.rows_without_answer_are_kept,
        FLAT_FILES,
        tasks=(GQ,),
    ),
    *columns(TC, see.same_rows, FILES, {}),
    *columns(TR, see.same_rows, FILES, {}),
    *(
        Proof(
            name,
            "its column is read, and what was the other one is the other side",
            {"source_lang": "tav", "target_lang": "en"},
            see.sides_change,
            tasks=(TR,),
        )
        for name in ("source_lang", "target_lang")
    ),
    Proof(
        "max_target_length",
        "tokens of the longest target, and of the longest translation that evaluation writes",
        {"max_target_length": 9},
        see.longest_written(9),
        {"max_dropped_fraction": 1},
        tasks=(TR,),
    ),
    Proof(
        "max_answer_length",
        "tokens of the longest target, and of the longest answer that evaluation writes",
        {"max_answer_length": 9},
        see.longest_written(9),
        {"max_dropped_fraction": 1},
        tasks=(GQ,),
    ),
    Proof(
        "prompt_template",
        "every window begins and ends as it says",
        {"prompt_template": "the dog {question} sees {context} the cat"},
        see.is_framed_by("the dog", "the cat"),
        tasks=(GQ,),
    ),
    Proof(
        "ignore_pad_token_for_loss",
        "every target is filled up to max_answer_length with padding",
        {"ignore_pad_token_for_loss": "false"},
        see.targets_are_filled_up(LONGEST_ANSWER),
        tasks=(GQ,),
    ),
    Proof(
        "doc_stride",
        "tokens that neighbouring windows of a long row share, but for a word that is cut",
        {"doc_stride": 5},
        see.windows_share_text(5),
        {"max_seq_length": 70},
        tasks=(GQ,),
    ),
    Proof(
        "num_beams", "sequences that the decoder follows for each source", {"num_beams": 3}, see.beams(3), tasks=WRITING
    ),
    Proof(
        "source_prefix",
        "every source begins with its tokens",
        {"source_prefix": "the dog "},
        see.begins_with_prefix,
        tasks=(TR,),
    ),
    Proof(
        "doc_stride",
        "tokens that neighbouring windows of a long row share",
        {"doc_stride": 9},
        see.windows_share(9),
        {"max_seq_length": 72},
        tasks=(QA,),
    ),
    Proof(
        "doc_stride",
        "tokens that neighbouring windows of a long row share",
        {"doc_stride": 3},
        see.windows_share(3),
        {"max_seq_length": 12},
        tasks=(TC,),
    ),
    Proof(
        "n_best_size",
        "spans of each prediction that evaluation makes",
        {"n_best_size": 3},
        see.spans_kept(3),
        tasks=(QA,),
    ),
    Proof(
        "max_answer_length_in_tokens",
        "tokens of the longest answer that evaluation predicts",
        {"max_answer_length_in_tokens": 2},
        see.longest_answer(2),
        tasks=(QA,),
    ),
    *(
        Proof(
            f"{split}_file_path",
            f"the rows of {split} are those of the file",
            {f"{split}_file_path": OTHER},
            see.rows_of_other(split),
        )
        for split in ("train", "validation", "test")
    ),
    *(
        Proof(
            f"{split}_mltable_path",
            f"the rows of {split} are those of the table, not those of the file",
            {f"{split}_mltable_path": "{files}"},
            see.rows_of_other(split),
        )
        for split in ("train", "validation", "test")
    ),
    Proof(
        "dataset_name",
        "the rows of train are those of the data set",
        {"dataset_name": "{files}/hub", "train_file_path": None},
        see.rows_as_in_base,
    ),
    Proof(
        "dataset_config_name",
        "the rows of train are those of this configuration",
        {"dataset_config_name": "second", "dataset_name": "{files}/hub", "train_file_path": None},
        see.rows_of_other("train"),
    ),
    Proof("batch_size", "rows in a call of the tokenizer", {"batch_size": 7}, see.rows_tokenized_at_a_time(7)),
    Proof(
        "max_seq_length",
        "tokens of the longest window",
        {"max_seq_length": 40},
        see.longest_window(40),
        {"doc_stride": 8},
        tasks=(QA,),
    ),
    Proof(
        "max_seq_length",
        "tokens of the longest window",
        {"max_seq_length": 12},
        see.longest_window(12),
        {"doc_stride": 2},
        tasks=(TC,),
    ),
    Proof(
        "max_seq_length",
        "tokens of the longest window",
        {"max_seq_length": 16},
        see.longest_window(16),
        {"max_dropped_fraction": 1},
        tasks=(TR,),
    ),
    Proof(
        "max_seq_length",
        "no window has more tokens",
        {"max_seq_length": 80},
        see.no_longer_window(80),
        {"doc_stride": 8},
        tasks=(GQ,),
    ),
    *(
        Proof(
            "pad_to_max_length",
            "tokens of every window",
            {"pad_to_max_length": "true"},
            see.every_window_of(512 if task in WRITING else 256),
            tasks=(task,),
        )
        for task in TASKS
    ),
    Proof(
        "max_train_samples",
        "rows of train",
        {"max_train_samples": 5},
        see.rows_counted(train=5, validation=12, test=12),
    ),
    Proof(
        "max_eval_samples",
        "rows of validation and of test",
        {"max_eval_samples": 3},
        see.rows_counted(train=48, validation=3, test=3),
    ),
    Proof(
        "max_dropped_fraction",
        "a split of which a quarter has to be dropped is taken",
        {"max_dropped_fraction": 0.3, "train_file_path": "{files}/broken.jsonl"},
        see.rows_counted(train=36, validation=12, test=12),
    ),
    Proof(
        "max_dropped_fraction",
        "a split of which a quarter has to be dropped is refused",
        {"max_dropped_fraction": 0.2, "train_file_path": "{files}/broken.jsonl"},
        refused=(3, "12 of 48 rows have to be dropped"),
    ),
    Proof("model_selector_output", "the tokenizer is that of the imported model", effect=see.tokenizer_is_the_models),
    Proof(
        "output_dir",
        "holds windows, rows and the account of them",
        effect=see.holds("preprocess.json", "train/windows/state.json", "test/rows.jsonl", "tokenizer/tokenizer.json"),
    ),
)
EVALUATION = (
    Proof("preprocess_output", "a prediction for each row of its test split", effect=see.predicts_its_test_split),
    Proof("test_data", "a prediction for each row of the file", SCORED, see.predicts_rows_of_other),
    Proof(
        "pytorch_model_folder",
        "the predictions are those of its weights",
        {"pytorch_model_folder": "{imported}/model"},
        see.other_predictions,
    ),
    Proof(
        "mlflow_model_folder",
        "the predictions are those of the same model's PyTorch folder",
        {"mlflow_model_folder": "{trained}/mlflow", "pytorch_model_folder": None},
        see.same_predictions,
    ),
    Proof(
        "openvino_model_folder",
        "the predictions of OpenVINO in 32 bits are those of the same model's PyTorch folder",
        elsewhere="tests/test_export.py::test_evaluation_of_a_graph",
    ),
    Proof(
        "per_device_eval_batch_size",
        "windows in a forward pass",
        {"per_device_eval_batch_size": 5},
        see.windows_in_evaluation(5),
    ),
    Proof("precision", "linear layers give bf16", {"precision": "bf16"}, see.evaluates_in("bfloat16")),
    Proof(
        "seed",
        "other predictions of a model whose head is new",
        {"seed": 7},
        see.other_predictions,
        {"pytorch_model_folder": "{imported}/model"},
        tasks=(QA, TC),
    ),
    Proof(
        "seed",
        "other predictions of a model that lacks a decoder",
        {"seed": 7},
        see.other_predictions,
        {"pytorch_model_folder": "{files}/half"},
        tasks=WRITING,
    ),
    Proof(
        "eval_accumulation_steps",
        "the results of so many batches move to the CPU together",
        {"eval_accumulation_steps": 3},
        see.moved_to_the_cpu_together(3),
    ),
    Proof(
        "evaluation_config",
        "metrics by published names are those that the file asks for",
        {"evaluation_config": "{files}/evaluation_config.json"},
        see.has_published_metrics(1),
    ),
    Proof(
        "evaluation_config_params",
        "metrics by published names are those that the text asks for, not the file",
        {"evaluation_config_params": f'{{"metrics": {TWO_OF_EACH}}}'},
        see.has_published_metrics(2),
        {"evaluation_config": "{files}/evaluation_config.json"},
    ),
    Proof("task_name", "another one is refused", {"task_name": "Translation"}, refused=(2, "must be one of")),
    Proof(
        "null_threshold",
        "every answer is withheld, and none with the opposite value",
        {"null_threshold": -1e9},
        see.answers_withheld,
        {"null_threshold": 1e9},
        tasks=(QA, GQ),
    ),
    *columns(QA, see.same_scores, {"test_data": "other.jsonl"}, SCORED),
    *columns(GQ, see.same_scores, {"test_data": "other.jsonl"}, SCORED),
    Proof(
        "answer_start_key",
        "rows without text whose column of this name holds -1 are scored",
        {"answer_start_key": "place"},
        see.rows_without_answer_are_scored,
        {"preprocess_output": None, "test_data": "{files}/flat/other.jsonl"},
        tasks=(GQ,),
    ),
    *columns(TC, see.same_scores, {"test_data": "other.jsonl"}, SCORED),
    *columns(TR, see.same_scores, {"test_data": "other.jsonl"}, SCORED),
    *(
        Proof(
            name,
            "refused where a file is read without it",
            {name: None},
            base=SCORED,
            refused=(2, f"--{name} is missing"),
            tasks=(TR,),
        )
        for name in ("source_lang", "target_lang")
    ),
    Proof(
        "num_beams", "sequences that the decoder follows for each source", {"num_beams": 3}, see.beams(3), tasks=WRITING
    ),
    Proof(
        "evaluation_result",
        "holds metrics, predictions and report",
        effect=see.holds("metrics.json", "predictions.jsonl", "report.html"),
    ),
)
TABLE: dict[str, tuple[Proof, ...]] = {
    "model_import": MODEL_IMPORT,
    "datapreprocess": DATAPREPROCESS,
    "finetune": FINETUNE,
    "evaluation": EVALUATION,
}


def proofs(component: str, task: str) -> tuple[Proof, ...]:
    """The rows of one component of one task."""
    return tuple(proof for proof in TABLE[component] if task in proof.tasks)
