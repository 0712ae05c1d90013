"""The layers that do not learn, in their quick form."""

from __future__ import annotations

import pytest
import torch

from aqa_pipeline.backbone.fast import FrozenPrefix
from aqa_pipeline.backbone.i3d import LAYERS
from tests.support.random_i3d import thin_i3d

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("count", [0, 1, 3, 5, 10, 12])
def test_the_quick_form_gives_the_map_of_the_readable_one(count: int) -> None:
    backbone = thin_i3d()
    names = [name for name, _ in LAYERS[:count]]
    x = torch.randn(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted = x
    with torch.no_grad():
        for name in names:
            wanted = backbone.layer(name, wanted)
    found = FrozenPrefix(backbone, names)(x)
    assert found.shape == wanted.shape
    assert not found.requires_grad
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
