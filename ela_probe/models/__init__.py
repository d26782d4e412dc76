"""Networks with layer attention: their parts, the table of networks, and the registry of names.

In: a name and its arguments.
Out: a network.
May import: errors, sites, system, forward.
"""
