"""A fitted run on disk, and how good it is."""
