"""The training loop, its checkpoints, its schedule, and what is shown and logged of it.

Nothing here knows what becomes of the saved model (results).
"""
