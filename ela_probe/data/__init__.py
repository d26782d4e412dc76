"""Sources of images and text, split, normalised and read in seeded batches.

In: a source such as `npz:PREFIX` or `text:FILE`.
Out: batches of inputs and labels.
May import: errors, system, forward.
"""
