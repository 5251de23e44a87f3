"""The metrics by the names of Azure's published evaluation component, as its evaluation_config asks for them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from finetune.core.console import say
from finetune.core.errors import Fault, ParameterError
from finetune.core.reading import Unreadable, json_object, misfit, object_of
from finetune.core.types import Json
from finetune.params.evaluation import EvaluationParams
from finetune.params.schema import did_you_mean
from finetune.tasks.task import Published, S


@dataclass(frozen=True)
class Asked:
    """What a config asks for."""

    names: tuple[str, ...]
    options: Json


def asked(params: EvaluationParams, published: Published[S]) -> Asked:
    """Return what evaluation_config and evaluation_config_params ask for, and print what has no effect.

    Raises: ParameterError.
    """
    given = {key: value for key, value in _given(params).items() if value is not None}
    known = {"metrics": list[str], **published.options}
    wrong = [_misfit(given, key, kind) for key, kind in known.items()]
    if any(wrong):
        raise ParameterError(*(Fault(f"{why} in the evaluation config") for why in wrong if why))
    names = given.get("metrics") or published.names
    for one in _unknown(given, names, published):
        say(f"note: {one} of the evaluation config has no effect")
    options = {key: given[key] for key in published.options if key in given}
    return Asked(tuple(name for name in published.names if name in names), options)


def _given(params: EvaluationParams) -> Json:
    """Return what the file and the text say, the text last. Raises: ParameterError."""
    file, text = params.evaluation_config, params.evaluation_config_params
    where, given = f"--evaluation_config {file}", Json()
    try:
        given |= json_object(file) if file is not None else {}
        where = f"--evaluation_config_params {text}"
        return given | (object_of(text) if text is not None else {})
    except Unreadable as why:
        raise ParameterError(Fault(f"{where} can't be read", why=str(why), fix='{"metrics": ["NAME"]}')) from None


def _misfit(given: Json, key: str, kind: object) -> str:
    """Return what is wrong with a value of the config; "" if nothing is."""
    if key not in given or (why := misfit(given[key], kind, key)):
        return "" if key not in given else why
    for text in given[key] if kind == list[str] else ():
        try:
            re.compile(text)
        except re.error as error:
            return f"{key} has {text!r:.80}, no regular expression ({error})"
    return ""


def _unknown(given: Json, names: Iterable[str], published: Published[S]) -> Iterator[str]:
    known = ("metrics", *published.options)
    yield from (f"{key!r:.80}{did_you_mean(key, known)}" for key in given if key not in known)
    yield from (
        f"metric {name!r:.80}{did_you_mean(name, published.names)}" for name in names if name not in published.names
    )
