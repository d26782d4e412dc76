"""One file for each verb: what a command does, as functions for use from Python.

In: a `Checkpoint` that `read_checkpoint` returned, so that a file is read once, and settings.
Out: results and files.
May import: errors, sites, system, forward, data, models, discovery, evaluation, analysis, pruning,
    checkpoint, training.ela, training.
"""
