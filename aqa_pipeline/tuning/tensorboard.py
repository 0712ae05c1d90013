"""Curves for TensorBoard, an extra; history.csv has the same numbers without it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aqa_pipeline.errors import SetupError
from aqa_pipeline.tuning.loop import Progress


def require_tensorboard() -> None:
    """Say so before the work begins, not after.

    Raises
    ------
    SetupError
        If the extra is not installed.
    """
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise SetupError(
            "--tensorboard needs an extra: type `pip install 'aqa-pipeline[tensorboard]'`"
        ) from None


@contextmanager
def tensorboard_log(folder: Path, *, done: int) -> Iterator[Callable[[Progress], None]]:
    """Yields what takes each :class:`Progress`; curves go to ``folder/tensorboard``.

    Parameters
    ----------
    folder : Path
        The run folder.
    done : int
        Steps done before; what an interrupted run wrote of later ones is hidden.
    """
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def note(progress: Progress) -> None:
        values = {
            "loss/classification": progress.classification,
            "loss/regression": progress.regression,
            "learning_rate/head": progress.head_learning_rate,
            "learning_rate/backbone": progress.backbone_learning_rate,
            "clips_per_second": progress.clips_per_second,
            "selection_rho": progress.selection_rho,
        }
        if progress.validating is None:
            for name, value in values.items():
                if value == value:
                    writer.add_scalar(name, value, progress.done)

    try:
        yield note
    finally:
        writer.close()
