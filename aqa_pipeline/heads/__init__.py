"""Regression heads: tensors in, scores out, no files."""
