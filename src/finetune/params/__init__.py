"""Every parameter once, the rules that hold between parameters, presets, and where a value comes from.

Nothing here imports torch, so that help and parameter errors are instant.
"""
