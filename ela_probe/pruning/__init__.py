"""Which retrievals go, and their physical removal: plans, planners, costs.

In: an Analysis, or costs. Out: a SkipPlan; a smaller model.
May import: all up to analysis.
"""
