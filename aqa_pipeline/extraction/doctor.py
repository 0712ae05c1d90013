"""Self-test of a machine: each thing the program needs, and what to type where it lacks.

Every check really does the thing (writes, renames, multiplies; encodes a tiny video and decodes it
to the frame) instead of looking at version numbers alone. None of them changes anything that
stays.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from aqa_pipeline.config import PixelPreset
from aqa_pipeline.errors import AqaError, ClipError, SetupError
from aqa_pipeline.hdf5 import DamagedFileError, new_hdf5, open_hdf5
from aqa_pipeline.media.reader import VideoReader
from aqa_pipeline.media.sandbox import LimitedProcess

Status = Literal["ok", "!", "missing"]

_DISTRIBUTION = "aqa-pipeline"
_CLIP_BYTES = 44_000  #: one cached clip of ten snippets, with its table
_LOW_DISK_BYTES = 2 << 30
_LOW_TEMPORARY_BYTES = 256 << 20

#: The tiny video that the decoder is tried on.
_VIDEO_FRAMES, _VIDEO_SIDE = 24, 64
_GREY_STEP = 8  #: frame i is grey level 8 i, further apart than the codec blurs them
_CODECS = ("libx264", "mpeg4")  #: both reorder frames; the second comes with every FFmpeg


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis.

    Attributes
    ----------
    name : str
    status : {"ok", "!", "missing"}
        ``"!"``: works, but is worth knowing. ``"missing"``: something needed lacks.
    found : str
    advice : str
        What to do or type; empty when all is well.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def diagnose(*, cache_root: Path, weights: Path | None = None) -> Iterator[Check]:
    """Run all checks, one after the other.

    Parameters
    ----------
    cache_root : Path
        Where feature caches go; it need not exist yet.
    weights : Path, optional
        Default: what ``aqa weights fetch`` fetched.

    Yields
    ------
    Check
    """
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("packages", _packages),
        ("device", _device),
        ("threads", _threads),
        ("processes", _processes),
        ("weights", lambda: _weights(weights)),
        ("decoder", _decoder),
        ("cache folder", lambda: _cache_folder(cache_root)),
        ("disk", lambda: _disk(cache_root)),
        ("temporary files", _temporary),
    ]
    for name, check in checks:
        try:
            yield check()
        except AqaError as error:
            yield Check(name, "missing", str(error))
        except ImportError as error:
            yield Check(name, "missing", f"cannot be imported: {error}", _reinstall(error.name))


def _reinstall(name: str | None) -> str:
    return f"pip install --force-reinstall {name or _DISTRIBUTION}"


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()}, {platform.platform()}")


def _packages() -> Check:
    """Compare what is installed with what the distribution says it needs."""
    try:
        needed = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return Check(
            "packages", "!", f"{_DISTRIBUTION} runs without being installed", "pip install ."
        )
    found, lacking = [], []
    for line in needed:
        requirement = re.fullmatch(r"([A-Za-z0-9._-]+)(?:>=([0-9.]+))?", line)
        if requirement is None:  # an extra, or a marker: not needed here
            continue
        name, least = requirement[1], requirement[2] or "0"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(f"{name}>={least}")
            continue
        found.append(f"{name} {version}")
        if _numbers(version) < _numbers(least):
            lacking.append(f"{name}>={least}")
    if lacking:
        quoted = " ".join(f"'{item}'" for item in lacking)
        return Check(
            "packages",
            "missing",
            f"too old or not there: {', '.join(lacking)}",
            f"pip install {quoted}",
        )
    return Check("packages", "ok", ", ".join(found))


def _numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: ``"2.13.0+cpu"`` is (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _device() -> Check:
    from aqa_pipeline.extraction.device_check import check_device

    found = check_device()
    return Check(
        "device",
        "missing" if found.is_broken else "!" if found.advice else "ok",
        found.found,
        found.advice,
    )


def _threads() -> Check:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    found = f"{threads} of torch on {cores} cores"
    if cores is not None and threads > cores:
        return Check("threads", "!", found, f"export OMP_NUM_THREADS={cores}")
    return Check("threads", "ok", found)


def _processes() -> Check:
    """Decoding runs in processes with limits, which must start and answer."""
    try:
        with LimitedProcess() as process:
            process.call(abs, -1)
    except (OSError, ClipError) as error:
        raise SetupError(
            f"no worker process ({error}); raise the limits of this shell or container (ulimit -a)"
        ) from error
    return Check("processes", "ok", f"spawned, {sys.executable}")


def _weights(path: Path | None) -> Check:
    from aqa_pipeline.backbone.weights import find_weights, weights_info

    info = weights_info(find_weights(path))
    return Check("weights", "ok", f"{info.layout}, sha256 {info.sha256[:12]}, {info.path}")


def _decoder() -> Check:
    try:
        return Check("decoder", "ok", check_decoder())
    except SetupError as error:
        advice = "pip install --force-reinstall --only-binary=:all: av"
        return Check("decoder", "missing", str(error), advice)


def check_decoder() -> str:
    """Encode a few grey frames with B-frames and decode a window from the middle.

    Returns
    -------
    str
        What did it, such as ``"libx264, PyAV 18.0.0, libavcodec 62.11.100"``.

    Raises
    ------
    SetupError
        The video cannot be written or read, or other frames came out than were asked for.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="aqa-doctor-") as folder:
            path = Path(folder) / "grey.mp4"
            codec = _encode(path)
            asked = np.arange(7, 15)
            with VideoReader(
                path, PixelPreset("check", crop=_VIDEO_SIDE, short_side=_VIDEO_SIDE)
            ) as reader:
                frames = reader.read(asked).frames  # (8, side, side, 3)
    except (ClipError, OSError, ValueError) as error:
        raise SetupError(f"a video of {_VIDEO_FRAMES} frames: {error}") from error
    found = np.rint(frames.mean(axis=(1, 2, 3)) / _GREY_STEP).astype(int)
    if (found != asked).any():
        raise SetupError(f"asked for frames {asked.tolist()}, the decoder gave {found.tolist()}")
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"{codec}, PyAV {av.__version__}, libavcodec {version}"


def _encode(path: Path) -> str:
    codec = next(name for name in _CODECS if name in av.codecs_available)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width = stream.height = _VIDEO_SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.max_b_frames = 2
        stream.codec_context.thread_count = 1
        for number in range(_VIDEO_FRAMES):
            pixels = np.full((_VIDEO_SIDE, _VIDEO_SIDE, 3), _GREY_STEP * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return codec


def _cache_folder(root: Path) -> Check:
    """Write, fsync, rename, lock and read in the folder where caches will lie."""
    place = _existing(root)
    try:
        with tempfile.TemporaryDirectory(prefix=".aqa-doctor-", dir=place) as folder:
            path = Path(folder) / "check.h5"
            with new_hdf5(path) as file:
                file["check"] = np.arange(6, dtype=np.float32)
            locks = _read_while_locked(path)
    except OSError as error:
        raise SetupError(
            f"{place}: cannot write here ({error.strerror}); make it writable, or work in another "
            "folder"
        ) from error
    except DamagedFileError as error:
        raise SetupError(f"{place}: does not give back what was written ({error})") from error
    return Check("cache folder", "ok", f"{root}: written, renamed, HDF5 read ({locks})")


def _read(path: Path) -> None:
    with open_hdf5(path) as file:
        if file["check"][:].tolist() != [0, 1, 2, 3, 4, 5]:
            raise OSError(errno.EIO, "what was written is not what is read")


def _read_while_locked(path: Path) -> str:
    """Segments are read without a lock, so somebody else's lock must not matter."""
    try:
        import fcntl
    except ImportError:  # Windows
        _read(path)
        return "locks not tried here"
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locks = "while it was locked"
        except OSError:
            locks = "no locks here, none needed"
        _read(path)
    return locks


def _disk(root: Path) -> Check:
    place = _existing(root)
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:,.1f} GB free at {place}: room for {free // _CLIP_BYTES:,} clips"
    if free < _LOW_DISK_BYTES:
        return Check("disk", "!", found, "free some space, or work in another folder")
    return Check("disk", "ok", found)


def _temporary() -> Check:
    try:
        place = Path(tempfile.gettempdir())
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
    except OSError as error:
        raise SetupError(f"no folder for temporary files ({error}); set TMPDIR") from error
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:,.1f} GB free at {place}"
    if free < _LOW_TEMPORARY_BYTES:
        return Check("temporary files", "!", found, "free some space, or set TMPDIR")
    return Check("temporary files", "ok", found)


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())
