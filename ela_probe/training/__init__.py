"""Training and fine-tuning with Lightning; `ela/` prunes while a network trains.

In: a network and data.
Out: trained weights, a log, a plan.
May import: errors, system, forward, data, models, evaluation, analysis, pruning, checkpoint,
    report, training.ela.
"""
