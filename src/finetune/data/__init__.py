"""The readers of files, what a cell means, the account of rows, the folders between components, the order of rows.

Nothing here knows the name of a task.
"""
