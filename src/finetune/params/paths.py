"""See that the files and folders of a command line are there, and which names are of this machine and not of a hub."""

import difflib
import re
from pathlib import Path

from finetune.core.errors import Fault
from finetune.params.schema import LOCAL_OR_HUB, Param, params_of

# The endings of files of rows, for what is no id of a hub.
_OF_A_FILE = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".txt", ".conll", ".arrow", ".safetensors", ".zip")


def missing_of(params: object) -> list[Fault]:
    """Return a fault for each input that is not there, or is a file in place of a folder or the other way round."""
    given = vars(params)
    inputs = [p for p in params_of(type(params)) if not p.output and given[p.name] is not None]
    return [fault for p in inputs if (fault := missing(p, str(given[p.name]), f"--{p.name} "))]


def missing(p: Param, text: str, said: str) -> Fault | None:
    """Return a fault if the value of an input names what isn't on this machine; None if it is, or is a hub's to know.

    `said` is how the parameter is typed, up to its value.
    """
    path = Path(text)
    if not p.is_port and not (p.name in LOCAL_OR_HUB and (path.exists() or looks_local(text))):
        return None
    folder = p.kind != "uri_file"
    if path.is_dir() if folder else path.is_file():
        return None
    kind = "folder" if folder else "file"
    if path.exists():
        what = f"{said}{text} is a {'file' if folder else 'folder'}, not a {kind}"
        return Fault(what, where=str(path.absolute()), fix=f"give the path of a {kind}")
    near = nearest(path)
    parent = next((place for place in path.absolute().parents if place.is_dir()), Path("/"))
    there = path.absolute().parent == parent
    why = (
        f"{parent} has no such {kind}"
        if there
        else f"{parent} has no folder {path.absolute().relative_to(parent).parts[0]}"
    )
    fix = f"{said}{near}" if near else f"give the path of a {kind} that is there"
    return Fault(f"{said}{text} is not there", where=str(path.absolute()), why=why, fix=fix)


def nearest(path: Path) -> Path | None:
    """Return the path in the same folder whose name is most like it, if one is."""
    try:
        names = sorted(other.name for other in path.parent.iterdir())
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return path.parent / near[0] if near else None


def looks_local(name: str) -> bool:
    """Return whether a name that may be of a hub (`squad`, `nyu-mll/glue`) is rather a path that isn't there.

    It begins at a folder or ends as a file, has more parts than an id, or names something in a folder that is here.
    """
    if "://" in name:
        return False
    begins = name.startswith((".", "/", "~")) or re.match(r"[A-Za-z]:[\\/]", name)
    parts = name.split("/")
    return bool(
        begins
        or "\\" in name
        or len(parts) > 2
        or name.endswith("/")
        or name.lower().endswith(_OF_A_FILE)
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )
