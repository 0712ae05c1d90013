"""The ``aqa`` command, installed as ``aqa_cli``: each command is a door to the library."""
