"""The metrics by the names of Azure's published evaluation component, as its evaluation_config asks for them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.core.console import say
from finetune.core.errors import Fault, ParameterError
from finetune.core.types import Json
from finetune.params.evaluation import EvaluationParams
from finetune.params.schema import did_you_mean
from finetune.tasks.task import Published


@dataclass(frozen=True)
class Asked:
    """What a config asks for."""

    names: tuple[str, ...]
    options: Json


def asked(params: EvaluationParams, published: Published[Any]) -> Asked:
    """Return what evaluation_config and evaluation_config_params ask for, and print what has no effect.

    Raises: ParameterError.
    """
    given: Json = {}
    if params.evaluation_config is not None:
        where = f"--evaluation_config {params.evaluation_config}"
        given |= _object(_text(params.evaluation_config, where), where)
    if params.evaluation_config_params is not None:
        given |= _object(params.evaluation_config_params, "--evaluation_config_params")
    given = {key: value for key, value in given.items() if value is not None}
    known = {"metrics": list, **published.options}
    faults = [
        Fault(f"{key} of the evaluation config is {given[key]!r:.40}", why=f"it has to be {_SHOWN[kind]}")
        for key, kind in known.items()
        if key in given and not _fits(given[key], kind)
    ]
    if faults:
        raise ParameterError(*faults)
    names = given.get("metrics") or published.names
    unknown = [f"{key!r}{did_you_mean(key, list(known))}" for key in given if key not in known]
    unknown += [
        f"metric {name!r}{did_you_mean(name, published.names)}" for name in names if name not in published.names
    ]
    for one in unknown:
        say(f"note: {one} of the evaluation config has no effect")
    options = {key: given[key] for key in published.options if key in given}
    return Asked(tuple(name for name in published.names if name in names), options)


_SHOWN = {bool: "true or false", list: "a list of texts"}


def _fits(value: object, kind: type) -> bool:
    if kind is not list:
        return isinstance(value, kind)
    return isinstance(value, list) and all(isinstance(item, str) and _is_pattern(item) for item in value)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(Fault(f"{where} can't be read", why=str(error))) from None


def _object(text: str, where: str) -> Json:
    fix = '{"metrics": ["NAME"]}'
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParameterError(Fault(f"{where} is not JSON", why=str(error), fix=fix)) from None
    if not isinstance(value, dict):
        raise ParameterError(Fault(f"{where} is not a JSON object", fix=fix))
    return value
