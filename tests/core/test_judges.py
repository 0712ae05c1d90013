from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aqa_pipeline.cache.load import feature_set
from aqa_pipeline.config import Protocol
from aqa_pipeline.core.judges import find_rule, half_points, label_of_marks, marks_of
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.datasets.manifest import read_manifest, write_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.errors import DataError
from tests.support.planted import planted_clips

MARKS = np.array([[7.0, 6.5, 8.0, 7.5, 7.0, 9.0, 5.0], [4.0, 4.5, 4.5, 5.0, 3.5, 4.0, 4.0]])


def test_the_middle_three_of_seven_by_hand() -> None:
    # 5 6.5 [7 7 7.5] 8 9 and 3.5 4 [4 4 4.5] 4.5 5
    np.testing.assert_array_equal(label_of_marks(MARKS, rule="middle three"), [21.5, 12.5])


def test_the_sum_of_all_by_hand() -> None:
    np.testing.assert_array_equal(label_of_marks(MARKS, rule="all"), [50.0, 29.5])


def test_the_rule_is_found_from_the_labels_despite_some_typing_errors() -> None:
    rng = np.random.default_rng(0)
    marks = rng.integers(0, 21, (100, 7)) / 2
    for rule in ("middle three", "all"):
        labels = label_of_marks(marks, rule=rule)
        labels[:10] += 3
        assert find_rule(marks, labels) == rule
        labels[10] += 0.06
        with pytest.raises(DataError, match=r"do not make the labels .*: 89%.* of 100 clips"):
            find_rule(marks, labels)


def test_a_label_off_by_exactly_the_tolerance_is_met() -> None:
    marks = np.array([[7.0, 6.5, 8.0]] * 10)
    assert find_rule(marks, np.full(10, 21.5 - 0.05)) == "middle three"
    # 21.55 - 21.5 is more than 0.05 in floating point.
    assert find_rule(marks, np.full(10, 21.55)) == "middle three"
    with pytest.raises(DataError, match="do not make the labels"):
        find_rule(marks, np.full(10, 21.5 + 0.0501))


def test_bins_are_the_half_points_between_the_extremes() -> None:
    np.testing.assert_array_equal(half_points([[7.5, 9.0]]), [7.5, 8.0, 8.5, 9.0])
    np.testing.assert_array_equal(half_points([[1.2, 2.3]]), [1.0, 1.5, 2.0, 2.5])


def test_without_marks_the_columns_are_named() -> None:
    with pytest.raises(DataError, match="the columns judge_1, judge_2"):
        marks_of(planted_clips(4))


@pytest.mark.parametrize("word", ["judge", "rating"])
def test_marks_come_from_the_manifest_in_the_order_of_their_numbers(
    tmp_path: Path, word: str
) -> None:
    path = tmp_path / "m.csv"
    columns = {f"{word}_{n}": [float(n), n + 0.5] for n in (10, 2, 1)}
    table = pd.DataFrame({"clip_id": ["a", "b"], "video": "v.mp4", "score": [1.0, 2.0], **columns})
    write_manifest(path, table)
    write_protocol(path.with_suffix(".toml"), Protocol(name="m"))
    manifest = read_manifest(path)
    features = np.zeros((2, 1, 3), dtype=np.float32)
    clips = feature_set(manifest.clips, features, manifest, LabelScale("none"))
    np.testing.assert_array_equal(clips.judges, [[1, 2, 10], [1.5, 2.5, 10.5]])
    gap = manifest.clips.assign(**{f"{word}_2": ["7", ""]})
    assert feature_set(gap, features, manifest, LabelScale("none")).judges is None
