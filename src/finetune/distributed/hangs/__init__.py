"""Runs that don't move: what each process says of its progress, who is behind, who is slow, and where it stands."""
