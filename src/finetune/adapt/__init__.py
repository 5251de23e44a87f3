"""What changes the model before training and is undone after: one function in one file each."""

from finetune.adapt.order import adapt, refuse

__all__ = ["adapt", "refuse"]
