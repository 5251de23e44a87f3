"""The saved model and its proof, serving, the report, the model card.

Nothing here knows the Trainer (training).
"""
