"""Which models are converted: those whose logits in each runtime are compared with PyTorch's in a test."""

from finetune.core.errors import Fault, UnsupportedError

TASKS = ("question_answering", "token_classification")
FAMILIES = ("bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
WRITES = "its model writes token after token, which a graph of one forward pass does not"


def refuse_others(task: str, model_type: str) -> None:
    """Raise UnsupportedError for a task or a family that is not converted."""
    if task not in TASKS:
        fix = f"finetune evaluation --task {task} --pytorch_model_folder FOLDER measures it as it is"
        raise UnsupportedError(Fault(f"finetune export of a model of {task}", why=WRITES, fix=fix))
    if model_type not in FAMILIES:
        why = "its conversion is not compared with PyTorch in a test"
        fix = f"finetune one of {', '.join(FAMILIES)}; or use the model in PyTorch, as it is"
        raise UnsupportedError(Fault(f"finetune export of a {model_type}", why=why, fix=fix))
