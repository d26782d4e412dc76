"""Files, devices, processes, progress, a user's own code: everything that is not about networks.

In: paths, options, bytes.
Out: files, devices, checked values.
May import: errors.
"""
