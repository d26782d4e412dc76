"""Figures and one HTML page. It draws, and computes nothing new.

In: an Analysis, a SkipPlan, a comparison.
Out: pictures and a page.
May import: errors, sites, system, evaluation, analysis, pruning.
"""
