"""Which retrievals to remove, and their physical removal: plans, planners, costs.

In: an Analysis, or measured costs.
Out: a SkipPlan; a smaller model.
May import: errors, sites, system, forward, models, adapters, discovery, evaluation, analysis.
"""
