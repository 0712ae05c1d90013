"""Hyperparameter sweeps: many trials, the best kept."""
