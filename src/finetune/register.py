"""Register the environments and components of this checkout in a workspace or a registry of Azure ML.

    finetune register --subscription ID --resource-group NAME --workspace NAME

All have one version, which follows from the code, the YAMLs and the environments: what is there with that version is
the same, and is left alone.
"""

from collections.abc import Iterable

from finetune.azure.declare import ROOT
from finetune.azure.service import connection
from finetune.azure.service.release import Asset, Release, find_release, register
from finetune.azure.words import read_line
from finetune.core.console import say, start
from finetune.core.errors import Fault, ParameterError
from finetune.core.process import run_main

USAGE = f"""usage: finetune register [--workspace NAME ... | --registry NAME] [--dry-run]

Registers the environments and all components, pipelines too, in one version that follows from their content. What is
there already is said and left alone.

{connection.USAGE}\
--registry NAME  a registry, instead of a workspace
--dry-run        say what would be registered; nothing is asked or sent
"""


def main(argv: list[str]) -> None:
    if "--help" in argv or "-h" in argv:
        print(USAGE, end="")
        return
    line, faults = read_line(argv, (*connection.WORKSPACE, "--registry"), ("--dry-run",))
    place, wrong = connection.find_place(line.options)
    faults += [*(Fault(f"unexpected word {word!r}") for word in line.words), *wrong]
    if faults:
        raise ParameterError(*faults)
    start("register")
    release = find_release(ROOT)
    say(f"version {release.version}: of the code, the YAMLs and the environments")
    if "--dry-run" in line.flags:
        say("--- would be registered")
        show(release, [(asset, "") for asset in release.assets])
        return
    client, place = connection.connect(place)
    say(str(place))
    done: list[tuple[Asset, str]] = []
    for asset, new in register(client, release, place.registry):
        done.append((asset, "new" if new else "there"))
        say(f"{len(done)}/{len(release.assets)} {asset.kind} {asset.name}: {done[-1][1]}")
    say("--- done")
    show(release, done)


def show(release: Release, done: Iterable[tuple[Asset, str]]) -> None:
    """Print a table of what is registered."""
    width = max(len(asset.name) for asset in release.assets)
    for asset, state in done:
        say(f"{asset.kind:11}  {asset.name:{width}}  {release.version}  {state}".rstrip())


if __name__ == "__main__":
    run_main(main)
