"""The loading of models, their heads and adaptations, their memory, and the one path from rows to predictions.

Nothing here knows the Trainer.
"""
