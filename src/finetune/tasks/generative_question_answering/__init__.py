"""The task of generative question answering: an answer written in the model's own words from question and context."""

from finetune.tasks.generation import targets, writing
from finetune.tasks.generation.objective import objective, weigh
from finetune.tasks.generative_question_answering import answers, models, prompts, rows
from finetune.tasks.question_answering import TASK as EXTRACTIVE
from finetune.tasks.question_answering import questions
from finetune.tasks.task import Card, Data, Decoding, Model, Report, Task

OBJECTIVE = objective()

TASK = Task(
    name="generative_question_answering",
    state=prompts.State,
    data=Data(
        validate=rows.validate,
        group=EXTRACTIVE.data.group,
        grouped_by=EXTRACTIVE.data.grouped_by,
        gold=EXTRACTIVE.data.gold,
        has_gold=EXTRACTIVE.data.has_gold,
        pretokenized=False,
        aligned=True,
        fit=prompts.fit,
        derived=prompts.derived,
        encode=prompts.encode,
        label=prompts.label,
        unanswerable=prompts.unanswerable,
        gold_lengths=targets.lengths,
        beyond=prompts.beyond,
        characters=EXTRACTIVE.data.characters,
        decode_columns=frozenset({"row", "prompt_tokens"}) | targets.COLUMNS,
        damage=rows.damage,
        padding=targets.padding,
        kinds=EXTRACTIVE.data.kinds,
    ),
    model=Model(
        auto_model=models.auto_model,
        families=models.FAMILIES,
        inputs=writing.INPUTS,
        head_config=lambda _state: {},
        adopt=prompts.adopt,
        configure=writing.configure,
    ),
    objective=OBJECTIVE,
    weigh=weigh,
    answer=writing.by_generation(OBJECTIVE, never_empty=True),
    decoding=Decoding(
        compact=writing.compact,
        decode=answers.decode,
        calibrate=answers.calibrate,
        written=writing.count_written,
        request_fields=("null_threshold", "num_beams"),
    ),
    scoring=questions.scoring(answers.metrics, answers.needed),
    serving=questions.serving(
        outputs={"answer": {"type": "string"}, "score": {"type": "double"}}, present=answers.present, tied=answers.tied
    ),
    report=Report(examine=answers.examine, show=answers.show),
    card=Card(pipeline_tag="question-answering", usage=answers.usage, limits=answers.limits),
)
