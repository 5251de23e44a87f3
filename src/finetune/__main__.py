"""The `finetune` command, as `python -m finetune`."""

from finetune.cli import console_script

console_script()
