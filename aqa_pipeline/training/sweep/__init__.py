"""Hyperparameter sweeps: many trials, the best kept.

``run``      the sweep from start to end: ask for trials, train them, fit the best
``plan``     its trials, and how they are put into stacks
``block``    one process's share: train stacks of trials and stop the hopeless early
``search``   the Optuna study, random draws, the rule of the early stop, what matters
``space``    what varies: dimensions and points
``trials``   a trial, its result, and the table of all results
"""
