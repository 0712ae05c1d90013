"""The paper's numbers, held to values copied by hand and to the paper's own arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aqa_pipeline.core.metrics import fisher_mean
from aqa_pipeline.report.paper.numbers import dataset_of, method_rows, table1, table1_headings


def test_table1_spot_values_of_every_kind_of_row() -> None:
    rho = {row.label: row for row in table1("rho")}
    assert len(rho) == 9
    assert rho["Pose+DCT [24]"].values["gym_vault"] == 0.1
    assert math.isnan(rho["Pose+DCT [24]"].values["ski_big_air"])
    assert rho["JRG [19]"].values["sync_diving_10m"] == 0.9254
    assert rho["USDL [29]"].values["snowboard_big_air"] == 0.7109
    assert rho["I3D+MLP* [29]"].quoted
    assert not rho["I3D + MLP*"].quoted
    assert list(rho["CoRe + GART*"].values.values()) == [
        0.8824, 0.7746, 0.7115, 0.6624, 0.9442, 0.9078,
    ]  # fmt: skip
    relative = {row.label: row for row in table1("relative_l2")}
    assert relative["C3D-SVR [21]"].values["sync_diving_3m"] == 17.84
    assert (relative["CoRe + GART*"].average, relative["I3D + MLP*"].average) == (2.12, 3.20)
    assert table1_headings()["sync_diving_3m"] == "Sync. 3m"


@pytest.mark.parametrize("row", table1("rho"), ids=lambda row: row.label)
def test_fisher_means_of_table1_reproduce_but_for_its_own_method(row) -> None:  # type: ignore[no-untyped-def]
    values = list(row.values.values())
    if np.isnan(values).any():
        assert math.isnan(row.average)
    elif row.method == "CoRe + GART*":
        assert row.average == 0.8401
        assert fisher_mean(values) == pytest.approx(0.8433, abs=5e-5)
    else:
        assert fisher_mean(values) == pytest.approx(row.average, abs=1.5e-4)


@pytest.mark.parametrize("row", table1("relative_l2"), ids=lambda row: row.label)
def test_plain_means_of_table1_reproduce(row) -> None:  # type: ignore[no-untyped-def]
    assert np.mean(list(row.values.values())) == pytest.approx(row.average, abs=6e-3)


def test_tables_2_and_3_spot_values() -> None:
    rows = method_rows("table2")
    assert [len([r for r in rows if r.difficulty is used]) for used in (False, True)] == [12, 4]
    found = {(row.label, row.difficulty): (row.rho, row.relative_l2) for row in rows}
    assert found["I3D + MLP* [29]", False] == (0.8921, 0.707)
    assert found["I3D + MLP*", False] == (0.9196, 0.465)
    assert found["CoRe + GART*", False] == (0.9341, 0.365)
    assert found["MUSDL [29]", True] == (0.9273, 0.451)
    assert [(r.method, r.ablation, r.rho, r.relative_l2) for r in method_rows("table3")] == [
        ("I3D + MLP", "Baseline", 0.9381, 0.394),
        ("I3D + GART", "+ GART", 0.9403, 0.366),
        ("CoRe + GART", "+ CoRe", 0.9512, 0.260),
    ]
    assert (dataset_of("table1"), dataset_of("table2")) == ("AQA-7", "MTL-AQA")
