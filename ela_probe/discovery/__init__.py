"""Where a model retrieves (adapters first, else observation), and the hooks that read there.

In: a model and a small batch.
Out: stages of sites, and their weights in every forward pass.
May import: errors, sites, system, spreading, forward, adapters.
"""
