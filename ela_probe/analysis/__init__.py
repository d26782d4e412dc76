"""How alike the retrievals of a model are: probe, streamed sums, fits, quantiles, findings.

In: a model and batches.
Out: an Analysis.
May import: errors, sites, system, spreading, forward, data, models, adapters, discovery,
evaluation.
"""
