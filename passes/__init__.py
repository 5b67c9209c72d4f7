"""One pass a file: couple, score, allocate, compress, restore, rewrite, dce.

A pass takes values and returns new ones. Numbers that need a framework (activations) come through
the protocols of `profile`, which executors in `backends` implement.
"""
