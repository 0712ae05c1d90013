"""Every default of the program, once.

Standard library only, so that ``aqa --help`` may import it. A field made by
:func:`aqa_pipeline.option.option` can also be given on the command line, in ``aqa.toml`` and in
the environment; its type, choices and default are the field's, the rest stands beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aqa_pipeline.option import as_in, option

DEVICE = "auto"  #: see :func:`aqa_pipeline.device.find_device`
PRECISION = "auto"  #: see :mod:`aqa_pipeline.extraction.choose_precision`

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PixelPreset:
    """From a decoded frame to the network's input.

    The frame is resized, to ``short_side`` or to ``size``, cropped at the centre and kept as
    uint8; the network later takes ``(uint8 / 255 - mean) / std`` per channel, RGB.
    """

    name: str
    crop: int  #: side of the centre crop, in pixels
    short_side: int | None = None  #: pixels of the shorter side; the aspect stays
    size: tuple[int, int] | None = None  #: or exactly this (width, height)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  #: of R, G, B, in units of full scale
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


#: ``kinetics`` is what the I3D weights were trained with (inputs in [-1, 1]). ``core`` is the
#: published CoRe run: a swapped argument made frames 256 wide and 455 high, and ImageNet
#: statistics were used although the weights expect [-1, 1]. ``demo`` fits in minutes on two
#: cores, ``tiny`` is the smallest the network takes, for fine-tuning without a GPU.
PIXEL_PRESETS: dict[str, PixelPreset] = {
    preset.name: preset
    for preset in (
        PixelPreset("kinetics", crop=224, short_side=256),
        PixelPreset("core", crop=224, size=(256, 455), mean=IMAGENET_MEAN, std=IMAGENET_STD),
        PixelPreset("demo", crop=112, short_side=128),
        PixelPreset("tiny", crop=64, short_side=72),
    )
}

#: From a score to its label: ``none``: label = score. ``raw``: label = score / difficulty.
#: ``range``: the class's range is mapped to 0..100.
LabelTransform = Literal["none", "raw", "range"]


@dataclass(frozen=True)
class Protocol:
    """How the clips of one data set are cut, labelled, compared and averaged.

    Lies beside the manifest as ``NAME.toml``, where a user reads and edits it.
    """

    name: str  #: of the data set
    #: see :func:`aqa_pipeline.media.snippets.window_positions`
    window_rule: Literal["last", "first", "even"] = "last"
    window_frames: int = 103
    snippet_frames: int = 16
    #: first frame of each snippet inside the window
    snippet_starts: tuple[int, ...] = (0, 10, 20, 30, 40, 50, 60, 70, 80, 86)
    pixels: str = "kinetics"  #: name of a pixel preset
    shift_frames: int = 0  #: training clips may be shifted by up to this many either way (views)
    exemplar_key: tuple[str, ...] = ()  #: columns in which query and exemplar must agree
    label_transform: LabelTransform = "none"
    #: for ``range``: category -> (lowest, highest score), in points; empty: taken from the
    #: training scores of each category (the honest default)
    label_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: largest label difference the groups cover; None: the range of the training labels
    score_range: float | None = None
    #: divides the exemplar's label (Eq. 4); None: the largest training label
    epsilon: float | None = None
    #: ``score_range`` and ``epsilon`` when the difficulty is not used (the starred methods of
    #: the paper's tables); None: from the training scores
    score_range_without_difficulty: float | None = None
    per_category: bool = False  #: one head per category, as for AQA-7 and the tasks of JIGSAWS
    fold_columns: tuple[str, ...] = ()  #: splits of cross-validation; empty: column ``split``
    rho_average: Literal["fisher", "mean"] = "fisher"  #: over categories; folds: plain mean
    source: str = ""  #: where the facts of this protocol come from


@dataclass(frozen=True)
class ExtractConfig:
    """Stage 1: how clips are decoded, run through the backbone and stored."""

    workers: int | None = option(  # None: chosen from the cores
        None,
        "Decoding processes; default: a quarter of the cores, beside a GPU all but one.",
        at_least=1,
    )
    clip_timeout_seconds: float = option(
        120.0,
        "Seconds after which a clip's decoding is given up (after one retry).",
        name="clip-timeout",
        above=0,
    )
    flush_clips: int = option(256, "Write a segment after this many clips ...", at_least=1)
    flush_seconds: float = option(60.0, "... or after this many seconds.", at_least=0)
    strict_window: bool = option(
        False, "A window past the end of its video is a failed clip.", only_on=True
    )
    #: see :func:`aqa_pipeline.media.views.views_of`
    views: Literal["none", "flip", "full"] = option(
        "none",
        "Also cache augmented copies: mirrored, or shifted as the protocol says and mirrored.",
    )


#: ``default``: the published head, its loss as a mean per pair. ``official``: the same with
#: the published sum over leaves. ``paper``: Eq. 5 over ordered pairs, a sigmoid at the leaf and
#: Eq. 6 as printed.
Recipe = Literal["default", "official", "paper"]
RangeOf = Literal["evaluated", "class"]
ModelSelection = Literal["validation", "test"]


@dataclass(frozen=True)
class HeadConfig:
    """The regressor on top of the snippet features (Sec. 3.2 and 4.1).

    The paper's own four methods are ``mlp`` or ``gart``, each ``direct`` (I3D + ...) or
    ``contrastive`` (CoRe + ...). Those it compares with: docs/paper-map.md.
    """

    kind: Literal["gart", "mlp", "usdl", "musdl", "svr", "dct-svr"] = option(
        "gart",
        "Regression tree or 3-layer MLP; with --mode direct also a distribution over scores "
        "(usdl) or over each judge's marks (musdl), and support vectors on the mean of the "
        "snippets (svr) or on their slow changes (dct-svr).",
        name="head",
    )
    mode: Literal["contrastive", "direct"] = option(
        "contrastive", "Compare with exemplars (CoRe), or score from the clip alone (I3D)."
    )
    recipe: Recipe = option(
        "default", "Groups and loss of the tree: ours, as published, or as printed in the paper."
    )
    num_groups: int = option(
        16,
        "Leaves of the tree, a power of two; the paper's depth 5 is 32, published as 16.",
        at_least=2,
    )
    hidden: int = option(
        256, "Width of every node of the tree, or of the MLP's layers.", at_least=1
    )
    aggregation: Literal["mean", "ordered", "attention", "lstm"] = option(
        "ordered",
        "How the snippets become one vector; mean is the paper's, the others know the order. "
        "lstm with --head mlp --mode direct is the C3D-LSTM way.",
    )
    reduced_dim: int = 64  #: width of a snippet inside ``ordered``
    dropout: float = option(
        0.0, "Share of the root feature that is dropped in training.", at_least=0, below=1
    )
    standardise: bool = option(
        True, "Scale features to zero mean and unit variance, over the clips a head learns from."
    )
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


@dataclass(frozen=True)
class FitConfig:
    """Stage 2: how heads are trained and their epoch chosen."""

    # Batch, learning rate and epochs were chosen by cross-validation inside the demo's training
    # split; docs/performance.md has the figures.
    epochs: int = option(12, "Passes over the training clips.", at_least=1)
    batch_size: int = option(4, "Pairs per step; each is trained in both orders.", at_least=1)
    #: Sec. 4.1 has 1e-3
    learning_rate: float = option(5e-4, "Adam's learning rate.", name="lr", above=0)
    weight_decay: float = option(0.0, "Adam's weight decay; 0 in the paper.", at_least=0)
    num_exemplars: int | None = option(  # M of Eq. 9
        10, "Exemplars that vote on a test clip.", at_least=1, none="all"
    )
    validation_fraction: float = option(
        0.2, "Part of the training split that chooses the epoch.", above=0, below=1
    )
    seed: int = option(0, "First seed.", at_least=0)
    num_seeds: int = option(  # from seed, seed + 1, ...
        1, "Heads trained side by side, each with a seed of its own.", name="seeds", at_least=1
    )
    #: ``test``: label ranges are the published ones, too
    model_selection: ModelSelection = option(
        "validation",
        "Choose the epoch on a validation part, or on the test set as published programs do.",
    )
    relative_l2_range: RangeOf = option(
        "evaluated",
        "What R-l2 divides by: the range of the evaluated clips, or of all clips of the class.",
        name="range",
    )
    use_difficulty: bool = option(
        True,
        "Use the difficulty as the protocol says, or never (the paper's starred methods).",
        name="difficulty",
    )
    views: bool = option(
        False, "Train on a random view of each clip, out of those `aqa extract --views` cached."
    )


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

    search: Literal["auto", "grid", "random", "tpe"] = option(
        "auto",
        "auto: the grid if all values are listed and --trials is not given, else random. "
        "tpe learns from the trials before, and several processes may share one --run.",
    )
    trials: int | None = option(
        None, "How many settings to try; default: the whole grid, or 32.", at_least=1
    )
    seed: int = option(0, "Seed of the drawn settings.", name="search-seed", at_least=0)
    jobs: int | None = option(
        None, "Processes side by side; default: one per core, or one for a GPU.", at_least=1
    )
    stack: int | None = option(
        None,
        "Maximum number of heads trained side by side; default: what fits in memory, up to 64.",
        at_least=1,
    )
    early_stop: bool = option(
        True, "Give up trials below the median at a quarter and at half of the epochs."
    )


#: The part of fine-tuning that is fitting a head; both learning rates are those of Sec. 4.1.
FINETUNE_FIT = FitConfig(epochs=20, batch_size=4, learning_rate=1e-3)

Unfreeze = Literal["all", "stem", "mixed_3", "mixed_4", "mixed_5"]


@dataclass(frozen=True)
class FinetuneConfig:
    """Backbone and head trained together: what changes the numbers, beside :class:`FitConfig`."""

    unfreeze: Unfreeze = option(
        "all", "Train this part of the backbone and all after it; all is stem."
    )
    backbone_learning_rate: float = option(
        1e-4, "Adam's learning rate for the backbone.", name="backbone-lr", above=0
    )
    warmup_steps: int = option(0, "Steps over which the learning rates rise.", at_least=0)
    schedule: Literal["constant", "cosine"] = option(
        "constant", "Learning rates after the warm-up."
    )
    clip_norm: float | None = option(None, "Cut gradients to this length; default: never.", above=0)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Precision of the backbone; auto: half on a GPU, float32 on a CPU."
    )
    flip: bool = option(True, "Mirror half of the clips.")
    shift_frames: int | None = option(
        None, "Shift training clips by up to this many frames; default: the protocol's.", at_least=0
    )
    crop_jitter: int | None = option(
        None,
        "Pixels the crop may lie off the centre; default: all the room the pixel preset has.",
        at_least=0,
    )


@dataclass(frozen=True)
class FinetuneMachine:
    """How fine-tuning uses the machine; the numbers change by rounding at most."""

    micro_batch_pairs: int | None = option(
        None,
        "Pairs that go through the network together; auto: as many of a step as the memory "
        "takes. The step's gradient is the same.",
        name="pairs-at-once",
        at_least=1,
        none="auto",
    )
    checkpointing: bool = option(
        False, "Compute activations twice instead of keeping them: less memory, more time."
    )
    save_every: int = option(
        50, "Steps between two saved states; each epoch saves one too.", metavar="STEPS", at_least=1
    )
    workers: int | None = option(
        None, "Decoding processes; default: a quarter of the cores, at least 1.", at_least=1
    )
    clip_timeout_seconds: float = as_in(ExtractConfig, "clip_timeout_seconds")
    frame_memory_gib: float | None = option(
        None,
        "Keep decoded frames up to this size; default: a quarter of the free memory.",
        name="frame-memory",
        metavar="GIB",
        at_least=0,
    )
    tensorboard: bool = option(
        False, "Write curves for TensorBoard into the run folder.", only_on=True
    )


@dataclass(frozen=True)
class ServeConfig:
    """The local page."""

    host: str = option(
        "127.0.0.1",
        "Address to listen on; any but the default lets others send videos to this machine.",
    )
    port: int = option(8000, "Port to listen on; 0: any free one.", at_least=0, at_most=65535)
    max_megabytes: int = option(200, "Largest video accepted, in MB.", name="max-mb", at_least=1)


@dataclass(frozen=True)
class ReproduceConfig:
    """What may be chosen for the paper's tables and figures; the rest is theirs."""

    num_seeds: int = option(
        5,
        "Heads of each method; mean and standard deviation are over them.",
        name="seeds",
        at_least=1,
    )
    epochs: int = as_in(FitConfig, "epochs")
    recipe: Recipe = as_in(HeadConfig, "recipe")
    model_selection: ModelSelection = as_in(FitConfig, "model_selection")


@dataclass(frozen=True)
class SplitConfig:
    """A seeded division into train and test, where the data bring none."""

    test_fraction: float = option(0.25, "Share of test clips.", above=0, below=1)
    seed: int = option(0, "Seed of the draw.", at_least=0)


@dataclass(frozen=True)
class ScoreConfig:
    """Scoring videos that nobody has seen before."""

    coverage: float = option(
        0.9, "How often the interval should contain the true score.", above=0, below=1
    )
    stride_frames: int = option(
        10, "Frames from one window of --slide to the next.", name="stride", at_least=1
    )
    decode_seconds: float = option(
        120.0, "Seconds after which decoding a video is given up.", name="clip-timeout", above=0
    )
    #: that decoding may take beyond the bare process; an 8K video takes half a GiB
    decode_memory_bytes: int = 3 * 2**30
