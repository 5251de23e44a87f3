"""Read the small files that users and components write, JSON and YAML, whatever stands in them."""

import dataclasses
import json
import stat
import typing
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from finetune.core.errors import first_line, shortened
from finetune.core.types import Json

if TYPE_CHECKING:
    from yaml import Node

T = typing.TypeVar("T")
JSON_BYTES, YAML_BYTES = 2**28, 2**18  # of a file; a second reads 50 MB of JSON, and 0.1 MB of YAML
YAML_NODES = 100_000  # values, each counted wherever an alias repeats it
WHOLE = 2**63  # a whole number is smaller
_KINDS: dict[object, tuple[type | UnionType, str]] = {
    str: (str, "text"),
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    date: (date, "a date"),
}


def no_file(path: Path) -> str:
    """Return why a path is not that of a file that can be read, as "is missing"; "" if it is."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError) as error:  # links in a circle, names that are too long
        return f"can't be read: {first_line(error)}"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) else "is a pipe or a device, not a file"  # nobody may write to it


class Unreadable(Exception):
    """The reason why a file can't be read, or is not what it should be."""


def plain_text(path: Path, most: int = JSON_BYTES) -> str:
    """Return the text of a file. Raises: Unreadable if it is not a file, has more bytes than `most`, or isn't UTF-8."""
    if why := no_file(path):
        raise Unreadable(f"it {why}")
    try:
        if (size := path.stat().st_size) > most:
            raise Unreadable(f"it has {size:,} bytes, and may have {most:,}")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise Unreadable(first_line(error)) from None


def each_once(pairs: list[tuple[str, object]]) -> Json:
    """Return the object of these keys and values. Raises: ValueError if a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shortened(twice, 80)!r} is there twice")
    return found


def json_object(path: Path, of_pairs: Callable[[list[tuple[str, object]]], Json] = each_once) -> Json:
    """Return the object of a JSON file. Raises: Unreadable."""
    return object_of(plain_text(path), of_pairs)


def object_of(text: str, of_pairs: Callable[[list[tuple[str, object]]], Json] = each_once) -> Json:
    """Return the object that JSON text is. Raises: Unreadable."""
    try:
        value = json.loads(text, object_pairs_hook=of_pairs)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:
        raise Unreadable(first_line(error)) from None
    if not isinstance(value, dict):
        raise Unreadable(f"it holds {_shown(value)}, not an object")
    return value


def yaml_mapping(path: Path) -> Json:
    """Return the mapping of a YAML file, all of whose keys are text. Raises: Unreadable."""
    import yaml

    text = plain_text(path, YAML_BYTES)
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None or not isinstance(node, yaml.MappingNode):
            raise Unreadable("its YAML is not a mapping")
        if _count(node, {}, set()) > YAML_NODES:
            raise Unreadable(f"its aliases make more than {YAML_NODES:,} values of it")
        value = loader.construct_document(node)
    except Unreadable:
        raise
    except yaml.YAMLError as error:
        raise Unreadable(f"it is not valid YAML: {shortened(str(error))}") from None
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except Exception as error:  # the makers of dates and numbers raise whatever int() and datetime do
        raise Unreadable(f"a value in it is none: {first_line(error)}") from None
    finally:
        if loader is not None:
            loader.dispose()
    if wrong := next(_other_keys(value), None):
        raise Unreadable(f"the key {wrong[0]!r} is not text: write '{wrong[0]}'")
    return dict(value)


def _count(node: "Node", counts: dict[int, int], above: set[int]) -> int:
    """Return the values in a node. Raises: Unreadable if it holds itself, or a key twice."""
    import yaml

    if id(node) in counts:
        return counts[id(node)]
    if id(node) in above:
        raise Unreadable("an anchor holds its own alias")
    above.add(id(node))
    inside: list[Node] = []
    if isinstance(node, yaml.MappingNode):
        inside = [part for pair in node.value for part in pair]
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise Unreadable(f"line {node.start_mark.line + 1}: the key {shortened(twice, 80)!r} is there twice")
    elif isinstance(node, yaml.SequenceNode):
        inside = list(node.value)
    counts[id(node)] = 1 + sum(_count(part, counts, above) for part in inside)
    above.remove(id(node))
    return counts[id(node)]


def _other_keys(value: object) -> Iterator[tuple[object]]:
    """Yield the keys in a value that are not text."""
    if isinstance(value, dict):
        yield from ((key,) for key in value if not isinstance(key, str))
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _other_keys(part)


def misfit(value: object, kind: object, name: str) -> str:
    """Return what is wrong with a value of a file that should be of this type; "" if nothing is.

    Types are those of JSON, lists, dicts, unions, dataclasses, which know all of their keys, and TypedDicts, which may
    have others.
    """
    of, parts = get_origin(kind), get_args(kind)
    if kind in _KINDS or kind is Any:
        wrong = iter([_misfit_scalar(value, kind, name)])
    elif of in (Union, UnionType):
        others = [misfit(value, part, name) for part in parts if part is not type(None)]
        fits = not all(others) or (value is None and type(None) in parts)
        wrong = iter([] if fits else others)
    elif not isinstance(value, list if of in (list, tuple) else dict):
        wrong = iter([f"{name} is {_shown(value)}, not {'a list' if of in (list, tuple) else 'an object'}"])
    elif isinstance(value, list):
        words = parts[0] is str and all(type(part) is str for part in value)  # there may be millions
        wrong = iter([]) if words else (misfit(part, parts[0], f"{name}[{i}]") for i, part in enumerate(value))
    elif of is dict:
        wrong = (misfit(part, parts[1], f"{name}.{key}") for key, part in value.items())
    else:
        wrong = _misfits_of_fields(value, kind, name)
    return next(filter(None, wrong), "")


def made(record: Callable[..., T], values: object, name: str) -> T:
    """Return the dataclass with these values. Raises: Unreadable if one is missing, unknown, or of another type."""
    if why := misfit(values, record, name):
        raise Unreadable(why)
    try:
        return record(**typing.cast(Json, values))
    except ValueError as error:  # a check of the dataclass itself
        raise Unreadable(f"{name}: {error}") from None


def _misfit_scalar(value: object, kind: object, name: str) -> str:
    if kind is Any:
        return ""
    wanted, text = _KINDS[kind]
    fits = isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))
    if fits and isinstance(value, int) and abs(value) >= WHOLE:
        return f"{name} is a number of {value.bit_length():,} bits"
    return "" if fits else f"{name} is {_shown(value)}, not {text}"


def _misfits_of_fields(value: Json, kind: Any, name: str) -> Iterator[str]:
    known = typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
        yield from (
            f"{name} has an unknown entry {shortened(key, 80)!r}" for key in sorted(value.keys() - known.keys())
        )
    else:
        needed = set(kind.__required_keys__)
    yield from (f"{name} has no {key!r}" for key in sorted(needed - value.keys()))
    yield from (misfit(value[key], of, f"{name}.{key}") for key, of in known.items() if key in value)


def _shown(value: object) -> str:
    """Return a value as JSON has it, or what it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "a huge number" if isinstance(value, int) and abs(value) >= WHOLE else shortened(repr(value), 80)
