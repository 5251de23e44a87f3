"""The errors, the end of a process, the console, who is who in a launch, and what may be written where.

Nothing here knows torch, a task, or the files of a run.
"""
