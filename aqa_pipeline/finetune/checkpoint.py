"""The state of a fine-tuning in one file, from which it resumes as if never stopped.

One safetensors file with the numbers and, in its header, a JSON text with everything else:
so weights, optimiser and position are of the same moment or the file is not there at all.

What it does not hold: the layers that do not learn, which are the parent's; and random
generators, of which there are none (:mod:`aqa_pipeline.finetune.draws`).

Ctrl-C and SIGTERM are held until a state can be written. Python turns both into exceptions that
may come at any point, also halfway through an update of the weights. Inside
:func:`held_signals` the first of them is only noted; whoever works asks at a safe point, saves and
leaves the block, which then does what the signal would have done. A second one is not held: it
acts at once.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aqa_pipeline.atomic import atomic_path
from aqa_pipeline.errors import DataError, UsageError
from aqa_pipeline.runs.config import stored_tensors, tensors_from_stored

STATE_FILE = "unfinished.safetensors"
STATE_FORMAT, STATE_VERSION = "aqa-finetune-state", 1
_HELD = (signal.SIGINT, signal.SIGTERM)


@dataclass
class TrainerState:
    """How far a fine-tuning is, and what it has seen so far.

    Attributes
    ----------
    epoch : int
        The one under way, from 1.
    step : int
        Steps of it that are done; all of them: only its validation is missing.
    classification, regression : float
        Losses of this epoch so far, summed over its pairs.
    best_epoch : int
        0: none yet.
    best_rho, best_relative_l2 : float or None
        Of the clips that choose, at that epoch and lowest of any; None: not defined yet.
    history : list of list
        Rows of history.csv.
    judged_scores : list of list
        What each epoch predicted for the clips that choose, in points.
    num_passes : int
        Clips encoded for validations.
    """

    epoch: int = 1
    step: int = 0
    classification: float = 0.0
    regression: float = 0.0
    best_epoch: int = 0
    best_rho: float | None = None
    best_relative_l2: float | None = None
    history: list[list[float]] = field(default_factory=list)
    judged_scores: list[list[float]] = field(default_factory=list)
    num_passes: int = 0


@dataclass(frozen=True, eq=False)
class SavedState:
    """What :func:`read_state` gives back.

    Attributes
    ----------
    settings : dict
        Of the fine-tuning it belongs to: everything that changes its numbers.
    position : TrainerState
    micro_batch_pairs : int
        As it was resolved; another one would round otherwise.
    scaler : dict
        Of the gradient scaler.
    tensors : dict of str to Tensor
        ``model.NAME``, ``best.NAME``, ``adam.NUMBER.NAME``.
    """

    settings: dict[str, Any]
    position: TrainerState
    micro_batch_pairs: int
    scaler: dict[str, Any]
    tensors: dict[str, Tensor]


def write_state(
    path: Path,
    *,
    settings: Mapping[str, Any],
    position: TrainerState,
    micro_batch_pairs: int,
    model: nn.Module,
    best: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Replace the state file in one step.

    Raises
    ------
    SetupError
        The disk is full or the folder read-only; the file before is still there.
    """
    tensors = {
        f"model.{name}": value
        for name, value in stored_tensors(learned(model), head="head.").items()
    }
    tensors |= {f"best.{name}": value for name, value in stored_tensors(best, head="head.").items()}
    for number, values in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in values.items()}
    text = json.dumps(
        {
            "settings": settings,
            "position": asdict(position),
            "micro_batch_pairs": micro_batch_pairs,
            "scaler": scaler.state_dict(),
        }
    )
    metadata = {"format": STATE_FORMAT, "format_version": str(STATE_VERSION), "state": text}
    # A copy of each: tensors that share memory, or lie channels last, cannot be stored.
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    with atomic_path(path) as temporary:
        save_file(copies, temporary, metadata=metadata)


def read_state(path: Path) -> SavedState:
    """Read a state file.

    Raises
    ------
    DataError
        If it is damaged or of another version.
    """
    again = "type the same command with --again to start anew"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if (metadata.get("format"), metadata.get("format_version")) != (
            STATE_FORMAT,
            str(STATE_VERSION),
        ):
            raise DataError(
                f"{path}: written by another version of this program (format "
                f"{metadata.get('format')!r} {metadata.get('format_version')}); {again}"
            )
        state = json.loads(metadata["state"])
        values = {f.name: state["position"][f.name] for f in fields(TrainerState)}
        return SavedState(
            settings=state["settings"],
            position=TrainerState(**values),
            micro_batch_pairs=state["micro_batch_pairs"],
            scaler=state["scaler"],
            tensors=tensors,
        )
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged ({error}); {again}") from None


def check_settings(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings than those it was begun with.

    Raises
    ------
    UsageError
        Naming what differs.
    """
    wanted = json.loads(json.dumps(wanted))  # as it comes back from the file
    differing = [
        f"{name}: {saved.get(name)} there, {wanted.get(name)} here"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if differing:
        raise UsageError(
            f"{path.parent}: holds a fine-tuning with other settings ({'; '.join(differing)}); "
            "type --again to replace it, or give this one another name with --run"
        )


def restore(
    saved: SavedState,
    *,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> dict[str, Tensor]:
    """Put weights, optimiser and scaler back; returns the best weights so far."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
    adam: dict[int, dict[str, Tensor]] = {}
    for name, value in saved.tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "adam":
            number, _, field_name = rest.partition(".")
            adam.setdefault(int(number), {})[field_name] = value
        else:
            parts[kind][rest] = value
    put_learned(model, tensors_from_stored(parts["model"], head="head."))
    optimiser.load_state_dict({**optimiser.state_dict(), "state": adam})
    _lay_out_as_parameters(optimiser)
    scaler.load_state_dict(saved.scaler)
    return tensors_from_stored(parts["best"], head="head.")


def learned(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that learn, and the head's constants with them."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {
        name: value
        for name, value in model.state_dict().items()
        if name in trained or name.startswith("head.")
    }


def put_learned(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set what :func:`learned` gave; everything else stays."""
    state = model.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)


def _lay_out_as_parameters(optimiser: torch.optim.Optimizer) -> None:
    """Give Adam's moments the strides of their parameters again.

    A file has none; where strides differ, torch updates one parameter after the other.
    """
    for parameter, values in optimiser.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


@contextmanager
def held_signals() -> Iterator[HeldSignals]:
    """Hold SIGINT and SIGTERM; at the end of the block one that came takes effect.

    Outside the main thread, where Python handles no signals, nothing is held.
    """
    held = HeldSignals()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    held.hold()
    try:
        yield held
    finally:
        held.release()
    if held.number is not None:
        signal.raise_signal(held.number)


class HeldSignals:
    """Whether a signal has come.

    Attributes
    ----------
    number : int or None
        The signal.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def hold(self) -> None:
        for number in _HELD:
            self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.release()
