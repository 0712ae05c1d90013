"""The method's arithmetic on numpy arrays."""
