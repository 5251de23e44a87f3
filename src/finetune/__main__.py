"""`python -m finetune` is the `finetune` command."""

from finetune.cli import console_script

console_script()
