"""ELA: the Lightning callback that probes, plans and removes retrievals between epochs.

In: a network in training.
Out: a smaller network, and its plan.
May import: errors, sites, system, forward, models, adapters, discovery, analysis, pruning.
"""
