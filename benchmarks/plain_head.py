"""CoRe + GART the plain way: one sample, one leaf, one exemplar at a time, in Python.

What the published program's training and test loops do, written anew from the description of
its behaviour: samples are gathered and labelled one by one, each layer of the tree is a grouped
convolution over all nodes, the losses are summed leaf by leaf, and at test every exemplar is a
forward pass of its own. It is the yardstick of ``stage2.py``, and nothing else.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from aqa_pipeline.core.featureset import FeatureSet


class PlainTree(nn.Module):
    """Root layer, and one pair of grouped convolutions a layer; leaves are log-probabilities."""

    def __init__(self, *, feature_dim: int, hidden: int, num_groups: int) -> None:
        super().__init__()
        self.root = nn.Sequential(nn.Linear(2 * feature_dim + 1, hidden), nn.ReLU())
        self.depth = num_groups.bit_length() - 1
        nodes = [2**layer for layer in range(self.depth)]
        self.decide = nn.ModuleList(nn.Conv1d(n * hidden, n * 2, 1, groups=n) for n in nodes)
        self.grow = nn.ModuleList(nn.Conv1d(n * hidden, n * 2 * hidden, 1, groups=n) for n in nodes)
        self.offset = nn.Conv1d(num_groups * hidden, num_groups, 1, groups=num_groups)

    def forward(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs, shape=(B, 2 D + 1) -> log-probabilities and offsets, shape=(B, R) each."""
        x = self.root(joined).unsqueeze(2)  # (B, n H, 1)
        log_prob = x.new_zeros(len(x), 1)
        for decide, grow in zip(self.decide, self.grow, strict=True):
            step = decide(x).view(len(x), -1, 2).log_softmax(dim=2)
            log_prob = (log_prob.unsqueeze(2) + step).flatten(1)
            x = grow(x).relu()
        return log_prob, self.offset(x).squeeze(2)


class PlainProgram:
    """Training and voting, sample by sample.

    Parameters
    ----------
    train : FeatureSet
        Features already averaged over snippets, shape=(N, 1, D): what a cache would give it.
    edges : list of float
        Of the groups.
    hidden : int
    learning_rate : float
    """

    def __init__(
        self, train: FeatureSet, edges: list[float], *, hidden: int = 256, learning_rate: float
    ) -> None:
        self.train, self.edges = train, edges
        self.same: dict[object, list[int]] = {}
        for row, key in enumerate(train.key):
            self.same.setdefault(key, []).append(row)
        torch.manual_seed(0)
        random.seed(0)
        dim = train.features.shape[2]
        self.tree = PlainTree(feature_dim=dim, hidden=hidden, num_groups=len(edges) - 1)
        self.optimiser = torch.optim.Adam(self.tree.parameters(), lr=learning_rate)
        self.label = train.label.tolist()

    def sample(self, row: int) -> dict[str, object]:
        """What a data set class hands out: a clip and one exemplar of its difficulty."""
        others = [other for other in self.same[self.train.key[row]] if other != row] or [row]
        other = random.choice(others)
        return {
            "query": torch.from_numpy(self.train.features[row, 0]),
            "exemplar": torch.from_numpy(self.train.features[other, 0]),
            "query_label": self.label[row],
            "exemplar_label": self.label[other],
        }

    def leaf_labels(self, delta: float) -> tuple[list[float], list[float]]:
        """For every leaf, whether the difference falls into it, and its offset there or -1."""
        inside, offsets = [], []
        for left, right in zip(self.edges[:-1], self.edges[1:], strict=True):
            hit = left <= delta < right if delta >= 0 else left < delta <= right
            inside.append(1.0 if hit else 0.0)
            offsets.append((delta - left) / (right - left) if hit else -1.0)
        if not any(inside):
            inside[0], offsets[0] = 1.0, 0.0
        return inside, offsets

    def epoch(self, batch_size: int) -> float:
        """Train on every clip once; the mean loss."""
        order = list(range(len(self.train)))
        random.shuffle(order)
        epsilon = max(map(abs, self.edges))
        total, steps = 0.0, 0
        for start in range(0, len(order), batch_size):
            samples = [self.sample(row) for row in order[start : start + batch_size]]
            query, exemplar = (torch.stack([s[n] for s in samples]) for n in ("query", "exemplar"))  # type: ignore[misc]
            joined, labels, offsets = [], [], []
            for one, other, first, second in (
                (query, exemplar, "query_label", "exemplar_label"),
                (exemplar, query, "exemplar_label", "query_label"),
            ):
                scale = torch.tensor([[float(s[second]) / epsilon] for s in samples])  # type: ignore[arg-type]
                joined.append(torch.cat([other, one, scale], dim=1))
                for s in samples:
                    inside, offset = self.leaf_labels(float(s[first]) - float(s[second]))  # type: ignore[arg-type]
                    labels.append(inside)
                    offsets.append(offset)
            log_prob, found = self.tree(torch.cat(joined))
            target, offset_target = torch.tensor(labels), torch.tensor(offsets)
            loss = -(log_prob * target).sum(dim=1).mean()
            for leaf in range(target.shape[1]):
                mask = target[:, leaf] > 0
                if mask.any():
                    error = found[mask, leaf] - offset_target[mask, leaf]
                    loss = loss + error.square().mean()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total, steps = total + loss.item(), steps + 1
        return total / steps

    @torch.no_grad()
    def vote(self, test: FeatureSet, exemplars: list[list[int]]) -> list[float]:
        """Predicted label of each test clip, one clip and one exemplar at a time."""
        epsilon = max(map(abs, self.edges))
        predicted = []
        for row, own in enumerate(exemplars):
            query, votes = torch.from_numpy(test.features[row, 0]), []
            for other in own:
                exemplar = torch.from_numpy(self.train.features[other, 0])
                scale = torch.tensor([self.label[other] / epsilon])
                log_prob, offset = self.tree(torch.cat([exemplar, query, scale])[None])
                leaf = int(log_prob[0].argmax())
                left, right = self.edges[leaf], self.edges[leaf + 1]
                delta = left + float(offset[0, leaf]) * (right - left)
                votes.append(self.label[other] + delta)
            predicted.append(sum(votes) / len(votes))
        return predicted
