"""The component YAMLs are written from the parameters, checked, and run on this machine as Azure ML runs them.

Nothing here trains.
"""
