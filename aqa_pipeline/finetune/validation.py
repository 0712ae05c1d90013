"""Features of the clips that a validation needs, made once an epoch.

The published program encodes, for every test clip and every one of its M exemplars, both
clips anew: 2 M backbone passes a test clip. A feature does not depend on what it is
compared with, so here each clip is encoded once: at most the training part and the clips
that are judged. And since each exemplar group draws its M exemplars once for all clips
that are judged (:func:`aqa_pipeline.core.pairs.vote_exemplars`), only those drawn are encoded;
the predictions are the same to the last bit.

Source: Eq. 8-9.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.backbone.fast import fast_form
from aqa_pipeline.backbone.gpu_encoder import BatchedEncoder
from aqa_pipeline.backbone.i3d import I3D, normalise
from aqa_pipeline.backbone.precision import FLOAT32, computing_in
from aqa_pipeline.config import PixelPreset
from aqa_pipeline.core.featureset import FeatureSet, Key
from aqa_pipeline.core.pairs import ExemplarKeys, vote_exemplars
from aqa_pipeline.finetune.distributed import DistributedContext
from aqa_pipeline.finetune.draws import PLAIN_VIEW
from aqa_pipeline.finetune.frames import FrameStore, cut
from aqa_pipeline.heads.batch_voting import vote
from aqa_pipeline.heads.head import Head

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
FeatureArray = npt.NDArray[np.float32]

_CLIPS_AT_ONCE_ON_GPU = 8  #: a CPU takes one, so that no feature depends on its neighbours
_BATCHES_AT_ONCE = 2  #: on a GPU: one is computed while the next is cut


@dataclass(frozen=True, eq=False)
class ValidationPlan:
    """Which clips are judged, and which are compared with them.

    Attributes
    ----------
    judged : ndarray of int64, shape=(Q,)
        Rows.
    exemplars : ndarray of int64, shape=(Q, M)
        Rows of each one's exemplars, -1 for none.
    pool : ndarray of int64, shape=(n,)
        Rows that may be exemplars.
    """

    judged: IntArray
    exemplars: IntArray
    pool: IntArray

    @classmethod
    def of(
        cls,
        keys: Sequence[Key],
        *,
        judged: IntArray,
        pool: IntArray,
        num_exemplars: int | None,
        seed: int,
    ) -> ValidationPlan:
        """Draw the exemplars of all judged clips, as a finished run does."""
        pool_keys = [keys[row] for row in pool.tolist()]
        known = ExemplarKeys.of(pool_keys)
        pool_groups, _ = known.match(pool_keys)
        judged_groups, _ = known.match([keys[row] for row in judged.tolist()])
        local = vote_exemplars(judged_groups, pool_groups, num_exemplars=num_exemplars, seed=seed)
        return cls(judged, np.where(local >= 0, pool[local], -1), pool)

    @property
    def needed(self) -> list[int]:
        """Rows to encode: those judged and the exemplars drawn, each once."""
        drawn = self.exemplars[self.exemplars >= 0]
        rows: list[int] = np.union1d(self.judged, drawn).tolist()
        return rows

    def passes(self) -> dict[str, int]:
        """Backbone passes (clips encoded) of one validation, three ways.

        ``drawn_exemplars`` is what happens here; ``whole_bank`` would encode the whole pool;
        ``published_way`` encodes both clips of every comparison.
        """
        return {
            "drawn_exemplars": len(self.needed),
            "whole_bank": len(np.union1d(self.judged, self.pool)),
            "published_way": 2 * int((self.exemplars >= 0).sum()),
        }

    def predict(self, head: Head, features: FeatureArray, clips: FeatureSet) -> FloatArray:
        """Scores of the judged clips.

        Parameters
        ----------
        head : Head
            One model (K = 1).
        features : ndarray of float32, shape=(len(needed), S, D)
            Of :attr:`needed`, in that order.
        clips : FeatureSet
            All rows; only their labels are looked at.

        Returns
        -------
        ndarray of float64, shape=(Q,), in points
        """
        needed = np.array(self.needed, dtype=np.int64)
        place = np.searchsorted(needed, self.exemplars.clip(min=0))
        known = torch.from_numpy(features).to(head.device)
        label = vote(
            head,
            queries=known[torch.from_numpy(np.searchsorted(needed, self.judged))],
            pool=known,
            pool_label=torch.from_numpy(clips.label[needed]).to(head.device),
            exemplars=torch.from_numpy(np.where(self.exemplars >= 0, place, -1)).to(head.device),
        ).mean()[0]
        return clips.take(self.judged).to_score(label)


class Encoder:
    """Plain-view features of rows, by the quick form of the backbone as it is now.

    They are the features ``aqa extract`` would cache with these weights, in true float32.

    Parameters
    ----------
    clips : FrameStore
    snippets : ndarray of int64, shape=(S, snippet_frames)
    pixels : PixelPreset
    jitter : int
        Of the boxes in ``clips``.
    device : torch.device
    ranks : DistributedContext
        The rows are shared out; every process gets all features.
    """

    def __init__(
        self,
        clips: FrameStore,
        *,
        snippets: IntArray,
        pixels: PixelPreset,
        jitter: int,
        device: torch.device,
        ranks: DistributedContext,
    ) -> None:
        self._clips, self._jitter, self.device, self._ranks = clips, jitter, device, ranks
        self._snippets, self._pixels = snippets, pixels
        #: Snippets a GPU takes at once; fewer after its memory has run out.
        self._batch = len(snippets) * _CLIPS_AT_ONCE_ON_GPU

    def encode(
        self,
        backbone: I3D,
        rows: Sequence[int],
        *,
        between: Callable[[int, int], None] = lambda done, total: None,
    ) -> FeatureArray:
        """Features of rows, shape=(len(rows), S, D).

        Parameters
        ----------
        backbone : I3D
        rows : sequence of int
        between : callable
            Told ``(clips done, clips in all)`` of this process; an exception ends it.

        Raises
        ------
        SetupError
            A GPU's memory does not take a single snippet.
        """
        own = range(self._ranks.rank, len(rows), self._ranks.world)
        dim = backbone.classifier.in_channels
        features = np.zeros((len(rows), len(self._snippets), dim), np.float32)
        encode = self._on_cpu if self.device.type == "cpu" else self._on_gpu
        done = 0
        between(0, len(own))
        batches = encode(backbone, [rows[i] for i in own])
        with computing_in(FLOAT32), closing(batches):
            for values in batches:
                numbers = own[done : done + len(values)]
                features[list(numbers)] = values
                done += len(values)
                between(done, len(own))
        if self._ranks.world == 1:
            return features
        # Every row is zero but in one process: the sum is exact.
        everywhere = self._ranks.sum(torch.from_numpy(features).to(self.device))
        gathered: FeatureArray = everywhere.cpu().numpy()
        return gathered

    def _on_cpu(
        self, backbone: I3D, rows: Sequence[int]
    ) -> Generator[Sequence[FeatureArray], None, None]:
        network, snippets = fast_form(backbone), torch.from_numpy(self._snippets)
        with closing(self._clips.follow([[row] for row in rows])) as following:
            for row, boxes in zip(rows, following, strict=True):
                frames = torch.from_numpy(self._plain(row, boxes[row]))
                yield [network.features(normalise(frames[snippets], self._pixels)).numpy()]

    def _on_gpu(
        self, backbone: I3D, rows: Sequence[int]
    ) -> Generator[Sequence[FeatureArray], None, None]:
        network = fast_form(backbone, winograd=False)
        encoder = BatchedEncoder(
            network.features,
            pixels=self._pixels,
            index=self._snippets,
            window_frames=int(self._snippets.max()) + 1,
            device=self.device,
            batch=self._batch,
        )
        at_once = max(1, self._batch // len(self._snippets))
        needs = [rows[i : i + at_once] for i in range(0, len(rows), at_once)]
        pending: deque[Callable[[], Sequence[FeatureArray]]] = deque()
        with closing(self._clips.follow(needs)) as following:
            for need, boxes in zip(needs, following, strict=True):
                pending.append(encoder.start([self._plain(row, boxes[row]) for row in need]))
                if len(pending) == _BATCHES_AT_ONCE:
                    yield pending.popleft()()
            for wait in pending:
                yield wait()
        self._batch = encoder.batch

    def _plain(self, row: int, box: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return cut(box, self._clips.tasks[row], PLAIN_VIEW, jitter=self._jitter)
