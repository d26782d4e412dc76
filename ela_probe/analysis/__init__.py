"""How alike the retrievals of a model are: probe, streamed sums, fits, quantiles, findings.

In: a model and batches. Out: an Analysis.
May import: all of the above, data and evaluation.
"""
