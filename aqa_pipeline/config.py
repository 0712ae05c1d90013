"""Every default of the program, once.

Frozen dataclasses and constants only: nothing here reads a file or imports more
than the standard library, so that any module, and ``aqa --help``, may import it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DEVICE = "auto"  #: see :func:`aqa_pipeline.device.find_device`

PRECISION = "auto"  #: see :mod:`aqa_pipeline.extraction.choose_precision`

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PixelPreset:
    """From a decoded frame to the network's input.

    The frame is resized, cropped at the centre to ``crop x crop`` pixels and kept as
    uint8; the network later takes ``(uint8 / 255 - mean) / std`` per channel, RGB.

    Attributes
    ----------
    name : str
    short_side : int or None
        Resize so that the shorter side has this many pixels, keeping the aspect.
    size : (int, int) or None
        Or: resize to exactly this (width, height), aspect or not. One of the two is set.
    crop : int
        Side of the centre crop, in pixels.
    mean, std : (float, float, float)
        Per channel R, G, B, in units of full scale (0..1).
    """

    name: str
    crop: int
    short_side: int | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


#: ``kinetics`` is what the I3D weights were trained with (inputs in [-1, 1]).
#: ``core`` is the published CoRe run: a swapped argument made frames 256 wide and 455
#: high, and ImageNet statistics were used although the weights expect [-1, 1].
#: ``demo`` is the small size at which the demo fits in minutes on two cores, ``tiny`` the
#: smallest the network takes, for fine-tuning without a GPU.
PIXEL_PRESETS: dict[str, PixelPreset] = {
    preset.name: preset
    for preset in (
        PixelPreset("kinetics", crop=224, short_side=256),
        PixelPreset("core", crop=224, size=(256, 455), mean=IMAGENET_MEAN, std=IMAGENET_STD),
        PixelPreset("demo", crop=112, short_side=128),
        PixelPreset("tiny", crop=64, short_side=72),
    )
}

#: How a label is made from a score, and a score from a predicted label.
#: ``none``: label = score. ``raw``: label = score / difficulty. ``range``: the class's
#: range is mapped to 0..100.
LabelTransform = Literal["none", "raw", "range"]


@dataclass(frozen=True)
class Protocol:
    """How the clips of one data set are cut, labelled, compared and averaged.

    Lies beside the manifest as ``NAME.toml``, where a user reads and edits it.

    Attributes
    ----------
    name : str
        Name of the data set.
    window_rule : {"last", "first", "even"}
        See :func:`aqa_pipeline.media.snippets.window_positions`.
    window_frames, snippet_frames : int
        Lengths, in frames.
    snippet_starts : tuple of int
        First frame of each snippet inside the window.
    pixels : str
        Name of a pixel preset.
    shift_frames : int
        Training clips may be shifted by up to this many frames either way (views).
    exemplar_key : tuple of str
        Manifest columns in which query and exemplar must agree.
    label_transform : {"none", "raw", "range"}
    label_ranges : dict of str to (float, float)
        For ``range``: category -> (lowest, highest score), in points. Empty: taken from
        the training scores of each category (the honest default).
    score_range : float or None
        Largest score difference the groups cover, in label units. None: the range of the
        training labels.
    epsilon : float or None
        Divides the exemplar's label before it enters the head (Eq. 4). None: the largest
        training label.
    score_range_without_difficulty : float or None
        ``score_range`` and ``epsilon`` when the difficulty is not used (the starred methods
        of the paper's tables). None: from the training scores.
    per_category : bool
        One head for each category, as for AQA-7 and the tasks of JIGSAWS.
    fold_columns : tuple of str
        Manifest columns that hold the split of each cross-validation fold; empty: the
        column ``split``.
    rho_average : {"fisher", "mean"}
        How Spearman's rho is averaged over categories (folds: always the plain mean).
    source : str
        Where the facts of this protocol come from.
    """

    name: str
    window_rule: Literal["last", "first", "even"] = "last"
    window_frames: int = 103
    snippet_frames: int = 16
    snippet_starts: tuple[int, ...] = (0, 10, 20, 30, 40, 50, 60, 70, 80, 86)
    pixels: str = "kinetics"
    shift_frames: int = 0
    exemplar_key: tuple[str, ...] = ()
    label_transform: LabelTransform = "none"
    label_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    score_range: float | None = None
    epsilon: float | None = None
    score_range_without_difficulty: float | None = None
    per_category: bool = False
    fold_columns: tuple[str, ...] = ()
    rho_average: Literal["fisher", "mean"] = "fisher"
    source: str = ""


@dataclass(frozen=True)
class ExtractConfig:
    """Stage 1: how clips are decoded, run through the backbone and stored."""

    workers: int | None = None  #: decoding processes; None: chosen from the cores
    clip_timeout_seconds: float = 120.0  #: a clip that takes longer is retried once, alone
    flush_clips: int = 256  #: a segment is written after this many clips ...
    flush_seconds: float = 60.0  #: ... or this many seconds, whichever comes first
    strict_window: bool = False  #: a window past the end of the video is a failed clip
    #: augmented copies of each clip, see :func:`aqa_pipeline.media.views.views_of`
    views: Literal["none", "flip", "full"] = "none"


#: ``default``: the published head, its loss as a mean per pair. ``official``: the same with
#: the published sum over leaves. ``paper``: Eq. 5 over ordered pairs, a sigmoid at the leaf and
#: Eq. 6 as printed.
Recipe = Literal["default", "official", "paper"]


@dataclass(frozen=True)
class HeadConfig:
    """The regressor on top of the snippet features (Sec. 3.2 and 4.1).

    The paper's own four methods: I3D + MLP is ``mlp`` and ``direct``, I3D + GART ``gart`` and
    ``direct``, CoRe + MLP ``mlp`` and ``contrastive``, CoRe + GART ``gart`` and
    ``contrastive``. Those it compares with: docs/paper-map.md.
    """

    #: the last four look at one clip alone: ``direct`` only
    kind: Literal["gart", "mlp", "usdl", "musdl", "svr", "dct-svr"] = "gart"
    mode: Literal["contrastive", "direct"] = "contrastive"  #: compare, or score from one clip
    recipe: Recipe = "default"  #: bounds, leaf and loss of GART
    num_groups: int = 16  #: leaves of the tree; the paper's text says 2^d = 32 at d = 5
    hidden: int = 256  #: width of every node feature (Sec. 4.1)
    #: mean over the snippets is the paper's
    aggregation: Literal["mean", "ordered", "attention", "lstm"] = "ordered"
    reduced_dim: int = 64  #: width of a snippet inside ``ordered``
    dropout: float = 0.0  #: share of the root feature that is dropped in training
    standardise: bool = True  #: features to zero mean, unit variance (training part only)
    #: spread of a score's target distribution, as a part of the label range (usdl) or of the
    #: marks' range (musdl)
    sigma: float = 0.05
    score_bins: int = 101  #: of usdl, from the lowest to the highest training label
    dct_coefficients: int = 16  #: lowest frequencies of the time axis kept by dct-svr

    @property
    def name(self) -> str:
        """The method in the paper's words, such as ``CoRe + GART``."""
        if self.kind == "dct-svr":
            return "DCT + SVR"
        first = "CoRe" if self.mode == "contrastive" else "I3D"
        lstm = self.kind == "mlp" and self.aggregation == "lstm"
        return f"{first} + {'LSTM' if lstm else self.kind.upper()}"

    @property
    def is_svr(self) -> bool:
        """Whether scikit-learn fits it, from a grid instead of epochs."""
        return self.kind in ("svr", "dct-svr")


@dataclass(frozen=True)
class SvrGrid:
    """The constants of a support vector machine that are tried; labels have spread 1."""

    cost: tuple[float, ...] = (0.1, 1.0, 10.0)  #: C
    epsilon: tuple[float, ...] = (0.05, 0.2)  #: half width of the tube without loss
    gamma: tuple[float, ...] = (0.1, 1.0)  #: of the kernel, times vector length x variance

    def __len__(self) -> int:
        return len(self.cost) * len(self.epsilon) * len(self.gamma)


RangeOf = Literal["evaluated", "class"]
ModelSelection = Literal["validation", "test"]


@dataclass(frozen=True)
class FitConfig:
    """Stage 2: how heads are trained and their epoch chosen."""

    # Batch, learning rate and epochs were chosen by cross-validation inside the demo's training
    # split; docs/performance.md has the figures.
    epochs: int = 12
    batch_size: int = 4  #: pairs a step; each is trained in both orders
    learning_rate: float = 5e-4  #: Adam; Sec. 4.1 has 1e-3
    weight_decay: float = 0.0
    num_exemplars: int | None = 10  #: M of Eq. 9; None: every clip of the exemplar group
    validation_fraction: float = 0.2  #: of the training split; chooses the epoch
    seed: int = 0
    num_seeds: int = 1  #: heads trained side by side, from seed, seed + 1, ...
    #: What chooses the epoch: a validation part, or the test split, as in published programs;
    #: then label ranges are the published ones, too.
    model_selection: ModelSelection = "validation"
    #: What R-l2 divides by: the range of the clips it is measured on, as published programs do,
    #: or of every clip of the class.
    relative_l2_range: RangeOf = "evaluated"
    use_difficulty: bool = True  #: False: the starred methods of the paper's tables
    #: Train on a drawn view of each clip, of all that the cache holds (``aqa extract --views``).
    views: bool = False


@dataclass(frozen=True)
class ModelSettings:
    """What may differ between models that train side by side."""

    learning_rate: float
    weight_decay: float
    dropout: float

    @classmethod
    def of(cls, config: FitConfig, head: HeadConfig) -> ModelSettings:
        """What a fit asks of each of its models."""
        return cls(config.learning_rate, config.weight_decay, head.dropout)


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep looks for the best settings of stage two."""

    #: ``auto``: the grid where every dimension is listed and no number of trials is given
    search: Literal["auto", "grid", "random", "tpe"] = "auto"
    trials: int | None = None  #: None: the whole grid, or 32
    seed: int = 0  #: of the draws of points; heads have :attr:`FitConfig.seed`
    jobs: int | None = None  #: processes; None: one a core, or one for a GPU
    stack: int | None = None  #: most models side by side; None: chosen from free memory
    early_stop: bool = True  #: give up trials below the median at 1/4 and 1/2 of the epochs


#: Where fine-tuning begins: this part of the backbone and all after it learn. ``all`` is ``stem``.
Unfreeze = Literal["all", "stem", "mixed_3", "mixed_4", "mixed_5"]

#: The part of fine-tuning that is fitting a head. The learning rate is the head's (Sec. 4.1).
FINETUNE_FIT = FitConfig(epochs=20, batch_size=4, learning_rate=1e-3)


@dataclass(frozen=True)
class FinetuneConfig:
    """Backbone and head trained together: what changes the numbers, beside :class:`FitConfig`."""

    unfreeze: Unfreeze = "all"
    backbone_learning_rate: float = 1e-4  #: Adam; Sec. 4.1
    warmup_steps: int = 0  #: learning rates rise from 0 over these
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: float | None = None  #: longest gradient, all parameters together; None: any
    #: ``auto``: bfloat16 or float16 on a GPU, as it can; float32 on a CPU
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    flip: bool = True  #: half of the clips are mirrored
    shift_frames: int | None = None  #: a clip is shifted by up to this many; None: the protocol's
    crop_jitter: int | None = None  #: pixels the crop may lie off the centre; None: to the edge


@dataclass(frozen=True)
class FinetuneMachine:
    """How fine-tuning uses the machine; the numbers change by rounding at most."""

    #: pairs that go through the network together; None: as many as memory takes
    micro_batch_pairs: int | None = None
    checkpointing: bool = False  #: compute activations twice instead of keeping them
    save_every: int = 50  #: steps between two saved states
    workers: int | None = None  #: decoding processes; None: chosen from the cores
    clip_timeout_seconds: float = ExtractConfig.clip_timeout_seconds
    #: decoded frames kept between epochs, in GiB; None: a quarter of the free memory
    frame_memory_gib: float | None = None
    tensorboard: bool = False


@dataclass(frozen=True)
class ServeConfig:
    """The local page."""

    host: str = "127.0.0.1"  #: this machine alone
    port: int = 8000
    max_megabytes: int = 200  #: of one upload


@dataclass(frozen=True)
class ReproduceConfig:
    """What may be chosen for the paper's tables and figures; the rest is theirs."""

    num_seeds: int = 5
    epochs: int = FitConfig.epochs
    recipe: Recipe = HeadConfig.recipe
    model_selection: ModelSelection = FitConfig.model_selection


@dataclass(frozen=True)
class SplitConfig:
    """A seeded division into train and test, where the data bring none."""

    test_fraction: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class ScoreConfig:
    """Scoring videos that nobody has seen before."""

    coverage: float = 0.9  #: share of true scores that the intervals are meant to hold
    stride_frames: int = 10  #: from one window of a long video to the next
    decode_seconds: float = 120.0  #: a video that takes longer to decode is refused
    #: that decoding may take beyond the bare process; an 8K video takes half a GiB
    decode_memory_bytes: int = 3 * 2**30
