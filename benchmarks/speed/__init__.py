"""Speed and memory beside stock recipes, all in one run and in turn: `make bench`.

A case is a file with a `CASE` and a place in `CASES` of __main__.py. It names ways to do the same work. Each way has a
process of its own, which is asked for a few seconds of work in each round, so that whatever else a machine does meets
all ways alike. Ratios are those within a round.
"""
