"""Loading, heads, the adaptations of a model, and the one path from rows to predictions.

Nothing here knows the Trainer.
"""
