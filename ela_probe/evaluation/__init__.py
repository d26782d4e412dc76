"""What a model is worth and what it costs: accuracy, loss, FLOPs, time, memory.

In: models and batches.
Out: figures and tables.
May import: errors, sites, system, spreading, forward, data, models, adapters, discovery.
"""
