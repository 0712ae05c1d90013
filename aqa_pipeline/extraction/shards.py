"""Part I of N of a manifest: the same on every machine, disjoint, and complete.

Clips are ordered by video and time and cut into N runs of equal length, so that every
shard reads neighbouring clips of few videos, and a long video is shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aqa_pipeline.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``.

    Attributes
    ----------
    index : int
        From 1 on, as people and job arrays count.
    count : int
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def rows(self, videos: Sequence[str], frames: Sequence[int]) -> list[int]:
        """Rows of the clips in this shard, ascending.

        Parameters
        ----------
        videos : sequence of str, length n
            The column as it stands in the manifest: the same on every machine.
        frames : sequence of int, length n
            Where in its video a clip lies; equal ones stay in the order of the manifest.
        """
        order = sorted(range(len(videos)), key=lambda row: (videos[row], frames[row], row))
        first = (self.index - 1) * len(order) // self.count
        end = self.index * len(order) // self.count
        return sorted(order[first:end])


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """``I/N``, or ``slurm`` inside a job array.

    Raises
    ------
    UsageError
        Neither; or the job array cannot be told from its environment, has gaps, or
        counts in steps.
    """
    if text == "slurm":
        return _slurm_shard(environment)
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal():
        raise UsageError(f"--shard {text!r}: expected I/N, such as 2/8, or slurm")
    if not 1 <= int(index) <= int(count):
        raise UsageError(f"--shard {text}: shards of {count} are 1/{count} to {count}/{count}")
    return Shard(int(index), int(count))


def _slurm_shard(environment: Mapping[str, str]) -> Shard:
    task = _slurm_number(environment, "ID")
    first, last = _slurm_number(environment, "MIN"), _slurm_number(environment, "MAX")
    count = _slurm_number(environment, "COUNT")
    step = int(environment.get("SLURM_ARRAY_TASK_STEP") or 1)
    advice = f"submit with --array=0-{count - 1}"
    if step != 1:
        raise UsageError(f"--shard slurm: the job array counts in steps of {step}; {advice}")
    if last - first + 1 != count or not first <= task <= last:
        raise UsageError(
            f"--shard slurm: the job array has {count} tasks numbered {first} to {last} (this one "
            f"is {task}), so some numbers are missing and their clips would be too; {advice}, and "
            "run failed tasks again with --shard I/N"
        )
    return Shard(task - first + 1, count)


def _slurm_number(environment: Mapping[str, str], name: str) -> int:
    variable = f"SLURM_ARRAY_TASK_{name}"
    text = environment.get(variable, "")
    if not text.isdecimal():
        found = f"is {text!r}" if text else "is not set"
        raise UsageError(
            f"--shard slurm: {variable} {found}; is this a task of a job array "
            "(sbatch --array=0-7)? Elsewhere type --shard I/N"
        )
    return int(text)
