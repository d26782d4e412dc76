"""Files, devices, processes, progress, the user's own code: what is not about networks.

In: paths, options, bytes. Out: files, devices, checked values.
May import: errors.
"""
