from __future__ import annotations

from pathlib import Path

import pytest

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.errors import UsageError
from aqa_pipeline.training.sweep.space import FIELDS, Space, configs, parse_dimension, parse_space


def test_a_grid_is_every_combination() -> None:
    space = parse_space(["lr=1e-3,1e-2", "num-groups=8,16", "epochs=5"])
    assert space.is_listed
    assert [d.name for d in space.varied] == ["learning_rate", "num_groups"]
    assert space.grid() == [
        {"learning_rate": rate, "num_groups": groups, "epochs": 5}
        for rate in (1e-3, 1e-2)
        for groups in (8, 16)
    ]


def test_ranges_in_a_grid() -> None:
    assert parse_dimension("lr", "1e-4..1e-2:log:3").grid() == pytest.approx([1e-4, 1e-3, 1e-2])
    assert parse_dimension("dropout", "0..0.5:3").grid() == [0, 0.25, 0.5]
    assert parse_dimension("epochs", "3..6").grid() == [3, 4, 5, 6]
    assert parse_dimension("hidden", "16..256:log:3").grid() == [16, 64, 256]
    with pytest.raises(UsageError, match=r"type learning_rate=0.0001..0.01:log:5, or --search"):
        parse_dimension("lr", "1e-4..1e-2:log").grid()


def test_settings_count_for_more_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text('lr = "1e-4..1e-2:log"\nnum_groups = [8, 16]\nstandardise = [true, false]\n')
    space = parse_space(["num_groups=32"], file)
    assert [d.name for d in space.dimensions] == ["learning_rate", "num_groups", "standardise"]
    assert space.dimensions[1].choices == (32,)
    assert space.dimensions[2].choices == (True, False)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("lrr=1", "'lrr' cannot be swept; there are lr, "),
        ("lr", "--set lr: expected name=value"),
        ("lr=fast", "learning_rate=fast: expected a number"),
        ("epochs=2.5", "epochs=2.5: expected a whole number"),
        ("m=few", "num_exemplars=few: expected a whole number or all"),
        ("kind=tree", "kind=tree: expected one of gart, mlp, "),
        ("standardise=1", "standardise=1: expected true or false"),
        ("lr=1e-2..1e-4", "the first end must be below the second"),
        ("lr=0..1:log", "and above 0 for :log"),
        ("lr=1..2:lin", "expected lo..hi, lo..hi:log, or either with :N"),
        ("lr=1e-3", "nothing to vary: type, for instance"),
    ],
)
def test_a_wrong_setting_is_explained(setting: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_space([setting])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("point", "sentence"),
    [
        ({"kind": "svr"}, "kind svr is fitted from a grid of its own"),
        ({"kind": "usdl"}, "kind usdl cannot compare; add --set mode=direct"),
        ({"num_groups": 12}, "num_groups is 12; a binary tree needs a power of two"),
        ({"dropout": 1.0}, "dropout=1 lies outside 0 .. 1"),
        ({"num_exemplars": 0}, "num_exemplars=0 lies outside"),
    ],
)
def test_a_point_that_cannot_be_trained_is_explained(point: dict[str, int], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        configs(point, head=HeadConfig(), fit=FitConfig())
    assert sentence in str(caught.value)


def test_every_field_reaches_a_configuration() -> None:
    for name in FIELDS:
        own = [getattr(c, name, None) for c in (HeadConfig(), FitConfig())]
        assert any(value is not None for value in own), name
    head, fit = configs(
        {"learning_rate": 0.5, "hidden": 7, "num_exemplars": None}, head=HeadConfig(),
        fit=FitConfig(),
    )  # fmt: skip
    assert (fit.learning_rate, head.hidden, fit.num_exemplars) == (0.5, 7, None)


def test_a_grid_that_is_too_large_is_refused() -> None:
    values = ",".join(str(n) for n in range(1, 400))
    space = Space(tuple(parse_dimension(n, values) for n in ("epochs", "hidden")))
    with pytest.raises(UsageError, match="this grid has 159,201 points; type --search random"):
        space.grid()
