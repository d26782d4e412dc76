"""ELA: the Lightning callback that probes, plans and removes retrievals between epochs.

In: a network in training. Out: a smaller one, and the plan.
May import: all up to pruning.
"""
