"""Training and fine-tuning with Lightning; `ela/` prunes while it trains.

In: a network and data. Out: trained weights, a log, a plan.
May import: all up to pruning, and checkpoint.
"""
