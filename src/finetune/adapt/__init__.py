"""What changes the model before training and is undone after: one function in one file each."""

from finetune.adapt.order import Adapted, adapt, refuse

__all__ = ["Adapted", "adapt", "refuse"]
