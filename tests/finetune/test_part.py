"""The extra that is not there."""

from __future__ import annotations

import sys

import pytest

from aqa_pipeline.errors import SetupError
from aqa_pipeline.finetune.part import require_tensorboard


def test_without_the_extra_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tensorboard()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SetupError, match=r"pip install 'aqa-pipeline\[tensorboard\]'"):
        require_tensorboard()
