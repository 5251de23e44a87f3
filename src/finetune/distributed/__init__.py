"""The process group, failures and hangs, preemption, DeepSpeed, FSDP.

Nothing here knows the name of a task.
"""
