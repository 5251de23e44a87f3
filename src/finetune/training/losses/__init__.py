"""Losses that go wrong: which step it was, by what rows, and whether the run goes on without them."""
