"""Features of the clips that a validation needs, computed once per epoch.

The published program encodes, for every test clip and every one of its M exemplars, both
clips anew: 2 M backbone passes a test clip. A feature does not depend on what it is
compared with, so here each clip is encoded once: at most the training part and the clips
that are judged. And since each exemplar group draws its M exemplars once for all clips
that are judged (:func:`aqa_pipeline.core.pairs.vote_exemplars`), only those drawn are encoded;
the predictions are the same to the last bit.

Source: Eq. 8-9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.backbone.encoder import Encode, Encoder
from aqa_pipeline.backbone.fast import fast_form
from aqa_pipeline.backbone.gpu_encoder import BatchedEncoder
from aqa_pipeline.backbone.i3d import I3D
from aqa_pipeline.backbone.precision import FLOAT32, computing_in
from aqa_pipeline.config import PixelPreset
from aqa_pipeline.core.featureset import FeatureSet, Key
from aqa_pipeline.core.pairs import ExemplarKeys, vote_exemplars
from aqa_pipeline.extraction.stream import encode_stream
from aqa_pipeline.finetune.distributed import DistributedContext
from aqa_pipeline.finetune.draws import PLAIN_VIEW
from aqa_pipeline.finetune.frames import FrameStore, cut
from aqa_pipeline.heads.batch_voting import vote
from aqa_pipeline.heads.head import Head

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
FeatureArray = npt.NDArray[np.float32]

_CLIPS_AT_ONCE_ON_GPU = 8  #: a CPU takes one, so that no feature depends on its neighbours


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
        position = np.searchsorted(needed, self.exemplars.clip(min=0))
        known = torch.from_numpy(features).to(head.device)
        label = vote(
            head,
            queries=known[torch.from_numpy(np.searchsorted(needed, self.judged))],
            pool=known,
            pool_label=torch.from_numpy(clips.label[needed]).to(head.device),
            exemplars=torch.from_numpy(np.where(self.exemplars >= 0, position, -1)).to(head.device),
        ).mean()[0]
        return clips.take(self.judged).to_score(label)


class ClipFeatures:
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
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> FeatureArray:
        """Features of rows, shape=(len(rows), S, D).

        Parameters
        ----------
        backbone : I3D
        rows : sequence of int
        progress : callable
            Called as ``progress(done, total)`` with this process's clips; an exception ends it.

        Raises
        ------
        SetupError
            A GPU's memory does not take a single snippet.
        """
        own = range(self._ranks.rank, len(rows), self._ranks.world)
        dim = backbone.classifier.in_channels
        features = np.zeros((len(rows), len(self._snippets), dim), np.float32)
        progress(0, len(own))
        with computing_in(FLOAT32):
            encode = self._network(backbone)
            at_once = getattr(encode, "clips_at_once", 1)
            own_rows = [rows[i] for i in own]
            needs = [own_rows[i : i + at_once] for i in range(0, len(own), at_once)]
            with closing(self._clips.follow(needs)) as following:
                plain = (
                    self._plain(row, boxes[row])
                    for need, boxes in zip(needs, following, strict=True)
                    for row in need
                )
                encoded = encode_stream(plain, lambda frames: [frames], encode)
                for done, (_, (values,)) in enumerate(encoded):
                    features[own[done]] = values
                    progress(done + 1, len(own))
            if isinstance(encode, BatchedEncoder):
                self._batch = encode.batch
        if self._ranks.world == 1:
            return features
        # Every row is zero but in one process: the sum is exact.
        everywhere = self._ranks.sum(torch.from_numpy(features).to(self.device))
        gathered: FeatureArray = everywhere.cpu().numpy()
        return gathered

    def _network(self, backbone: I3D) -> Encode:
        """The quick form of the backbone as it is now."""
        if self.device.type == "cpu":
            return Encoder(
                fast_form(backbone), pixels=self._pixels, index=self._snippets, device=self.device
            )
        return self._batched(backbone)

    def _batched(self, backbone: I3D) -> BatchedEncoder:
        return BatchedEncoder(
            fast_form(backbone, winograd=False).features,
            pixels=self._pixels,
            index=self._snippets,
            window_frames=int(self._snippets.max()) + 1,
            device=self.device,
            batch=self._batch,
        )

    def _plain(self, row: int, box: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return cut(box, self._clips.tasks[row], PLAIN_VIEW, jitter=self._jitter)
