"""The version of the program, where setup.cfg reads it."""

__version__ = "0.1.0"
