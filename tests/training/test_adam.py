from __future__ import annotations

import torch
from torch import nn

from aqa_pipeline.training.adam import StackedAdam

RATES, DECAYS = [1e-2, 1e-2, 3e-3, 1e-2], [0.0, 0.0, 0.1, 0.1]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3, 70), (4, 5))
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def step(own: list[nn.Parameter], optimiser: StackedAdam | torch.optim.Adam) -> None:
    optimiser.zero_grad()
    for parameter in own:
        (parameter.sin() * parameter).sum().backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def test_each_model_moves_as_torchs_adam_with_its_settings_would_move_it() -> None:
    stacked = parameters()
    ours = StackedAdam(stacked, learning_rates=RATES, weight_decays=DECAYS)
    for _ in range(20):
        step(stacked, ours)
    for k, (rate, decay) in enumerate(zip(RATES, DECAYS, strict=True)):
        alone = [nn.Parameter(p[k].detach().clone()) for p in parameters()]
        theirs = torch.optim.Adam(alone, lr=rate, weight_decay=decay)
        for _ in range(20):
            step(alone, theirs)
        for whole, single in zip(stacked, alone, strict=True):
            torch.testing.assert_close(whole[k], single, rtol=1e-5, atol=1e-6)


def test_models_that_are_kept_go_on_as_if_nothing_had_happened() -> None:
    whole, cut = parameters(), parameters()
    undisturbed = StackedAdam(whole, learning_rates=RATES, weight_decays=DECAYS)
    optimiser = StackedAdam(cut, learning_rates=RATES, weight_decays=DECAYS)
    for epoch in range(6):
        if epoch == 3:
            for parameter in cut:
                parameter.grad = None
                parameter.data = parameter.data[[1, 3]]
            optimiser.keep([1, 3])
        step(whole, undisturbed)
        step(cut, optimiser)
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a[[1, 3]], b)
