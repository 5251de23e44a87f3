"""Run a pipeline component YAML on Azure ML, with the words of `finetune pipeline`.

    finetune submit components/question_answering/pipeline.yaml --set train_file_path=train.jsonl --download out

What is wrong with the names and values is said before anything is sent. Files and folders of this machine are uploaded.
"""

from contextlib import nullcontext
from pathlib import Path

from finetune.azure.pipeline_yaml import Pipeline, load_pipeline
from finetune.azure.service import connection, submission
from finetune.azure.words import Line, read_line
from finetune.core.console import say, start
from finetune.core.errors import Fault, ParameterError
from finetune.core.outputs import Output, claimed, refusals
from finetune.core.paths import LOST, is_lost
from finetune.core.process import run_main

USAGE = f"""usage: finetune submit FILE [--set NAME=VALUE ...] [--download FOLDER] [--workspace NAME ...]

Sends the pipeline to a workspace, shows the run until it has ended, and brings its outputs here.

FILE             a pipeline component YAML
--set NAME=VALUE an input of the pipeline; --set may be repeated, or take several. Files and folders of this machine
                 are uploaded; azureml:NAME:VERSION, azureml://… and https://… are passed on
--compute NAME   where its steps run, but for those whose compute_… is set; serverless if left out
--experiment NAME
                 its experiment; the folder of FILE if left out
--download FOLDER
                 where its outputs are brought
--no-wait        send it and end
--dry-run        check names and values and say what would be sent; nothing is asked or sent
{connection.USAGE}"""
OPTIONS = (*connection.WORKSPACE, "--compute", "--experiment", "--download")


def main(argv: list[str]) -> None:
    if not argv or "--help" in argv or "-h" in argv:
        print(USAGE, end="")
        return
    line, place = read_words(argv)
    pipeline, compute = load_pipeline(Path(line.words[0])), line.options.get("--compute", submission.SERVERLESS)
    inputs = submission.settle_inputs(pipeline, line.values, compute)
    target = download_folder(pipeline, line)
    start("submit")
    if "--dry-run" in line.flags:
        say(f"{line.words[0]} on {compute}, with")
        for name, text in inputs.items():
            say(f"  {name}: {text}")
        return
    job = submission.build(pipeline, inputs, compute, line.options.get("--experiment", ""))
    client, place = connection.connect(place)
    say(str(place))
    with claimed([target]) if target else nullcontext():
        sent = submission.send(client, job, inputs)
        say(f"run {sent.name}: {sent.studio_url}")
        if "--no-wait" in line.flags:
            return
        submission.follow(client, sent.name)
        if target:
            submission.download(client, sent.name, target)
            for name in pipeline.outputs:
                say(f"{name}  {target.folder / name}")


def read_words(argv: list[str]) -> tuple[Line, connection.Place]:
    """Return the command line read, and the workspace that it names. Raises: ParameterError if it is wrong."""
    line, faults = read_line(argv, OPTIONS, ("--no-wait", "--dry-run"), values=True)
    place, wrong = connection.find_place(line.options)
    faults += [*(Fault(f"unexpected word {word!r}", fix="--set NAME=VALUE") for word in line.words[1:]), *wrong]
    if not line.words:
        faults.append(Fault("no pipeline file is given", fix="finetune submit FILE"))
    if "--no-wait" in line.flags and "--download" in line.options:
        faults.append(Fault("--no-wait and --download are both given", why="there are outputs when the run has ended"))
    paths = [*line.words[:1], *(value for name, value in line.options.items() if name == "--download")]
    faults += [Fault(f"{path} {LOST}") for path in paths if is_lost(path)]
    if faults:
        raise ParameterError(*faults)
    return line, place


def download_folder(pipeline: Pipeline, line: Line) -> Output | None:
    """Return the folder to download into, if one is asked for. Raises: ParameterError if it can't be one."""
    if "--download" not in line.options:
        return None
    folder = Path(line.options["--download"]).resolve()
    output = Output("--download", folder, tuple(f"{name}/" for name in pipeline.outputs))
    if faults := refusals(output):
        raise ParameterError(*faults)
    return output


if __name__ == "__main__":
    run_main(main)
