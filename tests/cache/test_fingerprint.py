from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aqa_pipeline.cache.fingerprint import (
    FILE_NAME,
    Fingerprint,
    cache_folder,
    check_fingerprint,
    ensure_cache,
    machine_differences,
    machine_facts,
    nearest_cache,
    read_identity,
)
from aqa_pipeline.config import PIXEL_PRESETS, PixelPreset
from aqa_pipeline.errors import CacheError, SetupError
from tests.support.cache_data import FINGERPRINT

CHANGES: dict[str, Any] = {
    "backbone": "r3d",
    "weights_sha256": "cd" * 32,
    "pixels": PIXEL_PRESETS["core"],
    "window_rule": "first",
    "window_frames": 8,
    "snippet_frames": 5,
    "snippet_starts": (0, 2),
    "precision": "bfloat16",
    "arithmetic_version": 2,
}


def test_the_hash_of_version_1_never_changes() -> None:
    expected = (
        '{"arithmetic_version":1,"backbone":"i3d","pixels":{"crop":224,"mean":[0.5,0.5,0.5],'
        '"short_side":256,"size":null,"std":[0.5,0.5,0.5]},"precision":"float32",'
        '"snippet_frames":4,"snippet_starts":[0,3],"weights_sha256":"' + "ab" * 32 + '",'
        '"window_frames":7,"window_rule":"last"}'
    )
    assert replace(FINGERPRINT, arithmetic_version=1).canonical_json() == expected


@pytest.mark.parametrize("field", CHANGES)
def test_every_setting_changes_the_hash_and_is_named(field: str) -> None:
    changed = replace(FINGERPRINT, **{field: CHANGES[field]})
    assert changed.sha256 != FINGERPRINT.sha256
    assert changed.folder_name != FINGERPRINT.folder_name
    (first, *_) = changed.differences(FINGERPRINT)
    assert first.startswith(field)


def test_every_field_is_tested() -> None:
    assert set(CHANGES) == set(Fingerprint.__dataclass_fields__)


def test_a_preset_of_another_name_with_equal_numbers_shares_the_cache() -> None:
    assert FINGERPRINT.pixels is not None
    renamed = replace(FINGERPRINT, pixels=replace(FINGERPRINT.pixels, name="mine"))
    assert renamed.sha256 == FINGERPRINT.sha256
    assert renamed.differences(FINGERPRINT) == []


def test_differences_in_words() -> None:
    other = replace(FINGERPRINT, pixels=PIXEL_PRESETS["demo"], weights_sha256="cd" * 32)
    assert FINGERPRINT.differences(other) == [
        "pixels crop: 224 here, 112 there",
        "pixels short_side: 256 here, 128 there",
        "weights_sha256: abababababab here, cdcdcdcdcdcd there",
    ]
    assert "pixels: not set here, unknown there" in FINGERPRINT.differences(
        replace(FINGERPRINT, pixels=None)
    )


def test_folder_is_readable_and_safe(tmp_path: Path) -> None:
    strange = replace(FINGERPRINT, backbone="../my net/ü")
    folder = cache_folder(tmp_path, "demo", strange)
    assert folder.parent == tmp_path / "demo"
    assert folder.name == f"my-net-{strange.sha256[:12]}"


@pytest.mark.parametrize("pixels", [None, *PIXEL_PRESETS.values()])
def test_identity_round_trip(tmp_path: Path, pixels: PixelPreset | None) -> None:
    fingerprint = replace(FINGERPRINT, pixels=pixels)
    ensure_cache(tmp_path / "c", fingerprint, machine={"cpu": "x"})
    identity = read_identity(tmp_path / "c")
    assert identity.fingerprint == fingerprint
    assert identity.machine == {"cpu": "x"}


def test_another_fingerprint_is_refused_with_what_differs(tmp_path: Path) -> None:
    ensure_cache(tmp_path, FINGERPRINT)
    ensure_cache(tmp_path, FINGERPRINT)
    changed = replace(FINGERPRINT, precision="float16")
    for call in (ensure_cache, check_fingerprint):
        with pytest.raises(CacheError, match="precision: float16 here, float32 there"):
            call(tmp_path, changed)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read"),
        ("[]", "not the fingerprint.json of a feature cache"),
        ('{"format": "aqa-feature-cache", "format_version": 9}', "format version 9.*update"),
        ('{"format": "aqa-feature-cache", "format_version": 1}', "damaged .KeyError"),
    ],
)
def test_damaged_identity(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(CacheError, match=sentence):
        read_identity(tmp_path)


def test_edited_identity_is_noticed(tmp_path: Path) -> None:
    ensure_cache(tmp_path, FINGERPRINT)
    path = tmp_path / FILE_NAME
    document = json.loads(path.read_text())
    document["fingerprint"]["window_frames"] = 8
    path.write_text(json.dumps(document))
    with pytest.raises(CacheError, match="damaged or edited"):
        read_identity(tmp_path)


def test_no_cache_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="type `aqa extract --dataset mtl` to make it"):
        read_identity(tmp_path / "mtl" / "i3d-000")


def test_nearest_cache_has_the_fewest_differences(tmp_path: Path) -> None:
    assert nearest_cache(tmp_path, FINGERPRINT) is None
    near = replace(FINGERPRINT, precision="float16")
    far = replace(near, window_rule="first", backbone="r3d")
    for fingerprint in (far, near):
        ensure_cache(cache_folder(tmp_path, "d", fingerprint), fingerprint)
    (tmp_path / "d" / "broken").mkdir()
    (tmp_path / "d" / "broken" / FILE_NAME).write_text("{")
    assert nearest_cache(tmp_path / "d", FINGERPRINT) == (
        cache_folder(tmp_path, "d", near),
        ["precision: float32 here, float16 there"],
    )


def test_machine_facts_are_compared_where_both_know() -> None:
    facts = machine_facts(gpu="H200")
    assert facts["gpu"] == "H200"
    assert facts["torch"]
    assert machine_differences({"torch": "1", "a": 1}, {"torch": "2", "b": 2}) == [
        "torch: 1 here, 2 there"
    ]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"cache.* could not be written"):
        ensure_cache(tmp_path / "file" / "cache", FINGERPRINT)
