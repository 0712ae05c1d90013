"""Write docs/cli.md from the commands' own help; a test holds the page to it.

Run ``python docs/make_cli_page.py`` after changing a command.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from aqa_cli.main import cli

PAGE = Path(__file__).with_name("cli.md")

HEAD = """# The `aqa` command

Written by `docs/make_cli_page.py` from the commands' own help.

Results go to stdout, progress and warnings to stderr. Every option can also stand in
`aqa.toml`, in a table named after the command (`[extract]`, `[manifest.check]`), or in the
environment (`AQA_EXTRACT_WORKERS=2`), under the name it has here: `--num-exemplars 5` is
`num-exemplars = 5` (or `num_exemplars`) in `[fit-head]` and `AQA_FIT_HEAD_NUM_EXEMPLARS=5`;
`--no-flip` is `flip = false`. What is typed beats the environment, and that the file; a name
that does not exist is an error. `cache/`, `manifests/` and `runs/` are those of the folder of the
nearest `aqa.toml`, searched upwards, else of the current folder.

`--dataset` may be left out where the project has one data set, or `aqa.toml` says at its top
which is meant, `dataset = "mtl_aqa"` (or `AQA_DATASET=mtl_aqa`).

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | unexpected: a bug |
| 2 | usage |
| 3 | done, but some clips failed |
| 4 | bad table or data |
| 5 | cache and settings disagree |
| 6 | environment: missing weights, missing extra, no GPU, disk full |
| 130 | interrupted; the same command resumes where it stopped |
| 143 | terminated; likewise |
"""


def leaf_commands(group: click.Group, prefix: str = "aqa") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its full name, in alphabetical order."""
    for name in sorted(group.commands):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from leaf_commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def page() -> str:
    """The text of docs/cli.md."""
    parts = [HEAD]
    for name, command in leaf_commands(cli):
        context = click.Context(
            command,
            info_name=name,
            show_default=True,
            max_content_width=94,
            terminal_width=94,
            # As when typed. click keeps a command's help option from its first context, so
            # any other names would show or not depending on what ran before.
            help_option_names=cli.context_settings["help_option_names"],
        )
        parts.append(f"\n## {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
