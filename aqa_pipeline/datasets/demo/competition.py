"""The demo's sport: divers, dives, mistakes and judges' marks.

No picture is made here. The marks depend on the faults alone, and the faults are all
that the pictures are told about a dive: whatever a model learns of the score it has to
see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aqa_pipeline.datasets.demo.diver import DiveFaults, DiveKind
from aqa_pipeline.errors import UsageError

NUM_JUDGES = 7
NUM_DIVERS = 30
#: Fewest training dives that every difficulty of the test split has to choose exemplars
#: from, as long as there are enough dives.
MIN_TRAIN_PER_DIFFICULTY = 8
#: Spread of one judge's mark about the noiseless one, and of a judge's lasting leniency.
JUDGE_NOISE_POINTS, JUDGE_BIAS_POINTS = 0.45, 0.15

#: Dives on the programme and how often they are chosen, relative to each other.
PROGRAMME: tuple[tuple[DiveKind, float], ...] = (
    (DiveKind(2, 3, "B"), 0.7),  # 2.0
    (DiveKind(3, 3, "B"), 0.8),  # 2.2
    (DiveKind(1, 5, "C"), 1.0),  # 2.4
    (DiveKind(4, 5, "C"), 1.2),  # 2.6
    (DiveKind(2, 5, "B"), 0.7),  # 2.8
    (DiveKind(3, 5, "C"), 0.7),  # 2.8
    (DiveKind(3, 5, "B"), 1.3),  # 3.0
    (DiveKind(1, 7, "C"), 1.3),  # 3.2
    (DiveKind(4, 7, "C"), 0.6),  # 3.4
    (DiveKind(1, 7, "B"), 0.6),  # 3.4
    (DiveKind(2, 7, "B"), 0.8),  # 3.6
)


@dataclass(frozen=True)
class DemoConfig:
    """Size and seed of the demo competition.

    Attributes
    ----------
    seed : int
        Equal seeds give equal pictures and equal manifests.
    num_broadcasts : int
        Video files.
    num_train, num_test : int
        Dives.
    width, height : int
        Pixels of a frame; even, as H.264 wants it. The short side is what the pixel
        preset ``demo`` takes as it is.
    fps : int
        Frames a second. Other rates than 25 make a dive longer or shorter than the
        protocol's window of 103 frames.
    """

    seed: int = 0
    num_broadcasts: int = 8
    num_train: int = 200
    num_test: int = 64
    width: int = 176
    height: int = 128
    fps: int = 25

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"demo seed {self.seed}: expected 0 or more")
        if min(self.num_train, self.num_test) < 1 or self.num_broadcasts < 1 or self.fps < 1:
            raise UsageError(
                "the demo needs at least one broadcast, one training dive, one test dive and one "
                f"frame a second; got {self.num_broadcasts}, {self.num_train}, {self.num_test} "
                f"and {self.fps}"
            )
        if self.num_broadcasts > self.num_train + self.num_test:
            raise UsageError(
                f"{self.num_train + self.num_test} dives cannot fill {self.num_broadcasts} "
                "broadcasts: ask for fewer broadcasts or more dives"
            )
        if self.width % 2 or self.height % 2 or min(self.width, self.height) < 64:
            raise UsageError(
                f"demo frames of {self.width} x {self.height} pixels: both sides have to be even "
                "and at least 64"
            )


@dataclass(frozen=True)
class JudgedDive:
    """One dive of the competition.

    Attributes
    ----------
    kind : DiveKind
    faults : DiveFaults
    marks : tuple of float
        The judges' marks: seven half points from 0 to 10.
    split : {"train", "test"}
    """

    kind: DiveKind
    faults: DiveFaults
    marks: tuple[float, ...] = field(default=())
    split: str = "train"

    @property
    def score(self) -> float:
        """Final score, as published."""
        return final_score(self.marks, self.kind.difficulty)

    @property
    def noiseless_score(self) -> float:
        """The score if every judge gave the unrounded mark the faults deserve."""
        return self.kind.difficulty * 3 * noiseless_mark(self.faults)


def noiseless_mark(faults: DiveFaults) -> float:
    """The mark a dive deserves: 9.6 minus a penalty that grows with every fault, 0..10."""
    lost = (
        0.085 * abs(faults.rotation_degrees)
        + 0.050 * faults.knee_degrees
        + 0.050 * faults.legs_degrees
        + 1.6 * abs(faults.distance_metres)
        + 2.4 * faults.splash
    )
    return float(np.clip(9.6 - lost, 0.0, 10.0))


def judge_marks(
    mark: float, biases: npt.NDArray[np.float64], rng: np.random.Generator
) -> list[float]:
    """Marks of judges with these biases for a dive that deserves `mark`: half points, 0..10."""
    noisy = mark + biases + rng.normal(0, JUDGE_NOISE_POINTS, len(biases))
    return [float(value) for value in np.clip(np.round(2 * noisy) / 2, 0.0, 10.0)]


def final_score(marks: Sequence[float], difficulty: float) -> float:
    """Difficulty times the sum of the middle three of seven marks, as in MTL-AQA.

    Parameters
    ----------
    marks : sequence of float, length 7
        Half points.
    difficulty : float
        In tenths.

    Returns
    -------
    float
        To the nearest hundredth: the product of tenths and half points has no more.
    """
    return round(sum(sorted(marks)[2:5]) * difficulty, 2)


def plan_competition(config: DemoConfig) -> list[JudgedDive]:
    """Draw all dives of a competition, judge them and split them at random.

    Parameters
    ----------
    config : DemoConfig

    Returns
    -------
    list of JudgedDive
        In the order in which they are dived; ``config.num_train`` of them in the split
        ``train``, ``config.num_test`` in ``test``.
    """
    rng = np.random.default_rng((config.seed, 1))
    count = config.num_train + config.num_test
    weights = np.array([weight for _, weight in PROGRAMME])
    chosen = rng.choice(len(PROGRAMME), size=count, p=weights / weights.sum())
    kinds = [PROGRAMME[index][0] for index in chosen]
    skills = rng.normal(0.0, 1.0, NUM_DIVERS)[rng.integers(NUM_DIVERS, size=count)]
    biases = rng.normal(0.0, JUDGE_BIAS_POINTS, NUM_JUDGES)
    splits = _split(kinds, config, rng)
    dives = []
    for kind, skill, split in zip(kinds, skills, splits, strict=True):
        faults = _draw_faults(kind, float(skill), rng)
        marks = tuple(judge_marks(noiseless_mark(faults), biases, rng))
        dives.append(JudgedDive(kind, faults, marks, split))
    return dives


def _draw_faults(kind: DiveKind, skill: float, rng: np.random.Generator) -> DiveFaults:
    """Small faults often, large ones seldom; fewer with skill, more with difficulty.

    A dive's faults go together: a take-off that goes wrong spoils what comes after it.
    """
    how_it_went = rng.normal(0.0, 0.35)
    severity = np.exp(-0.45 * skill + 0.22 * (kind.difficulty - 2.9) + how_it_went)
    rotation = float(np.clip(rng.normal(0, 9.5 * severity), -40, 40))
    splash = 0.10 + 0.012 * abs(rotation) + 0.16 * severity * rng.gamma(1.2)
    return DiveFaults(
        rotation_degrees=rotation,
        knee_degrees=float(min(9.5 * severity * rng.gamma(1.2), 60)),
        legs_degrees=float(min(7.5 * severity * rng.gamma(1.2), 45)),
        distance_metres=float(np.clip(rng.normal(0, 0.22 * severity), -0.7, 0.9)),
        splash=float(min(splash, 1.0)),
    )


def _split(kinds: list[DiveKind], config: DemoConfig, rng: np.random.Generator) -> list[str]:
    """Test dives at random, but none that would leave its difficulty short of exemplars."""
    left = Counter(kind.difficulty for kind in kinds)
    test: set[int] = set()
    passed_over: list[int] = []
    for index in rng.permutation(len(kinds)).tolist():
        if len(test) < config.num_test and left[kinds[index].difficulty] > MIN_TRAIN_PER_DIFFICULTY:
            left[kinds[index].difficulty] -= 1
            test.add(index)
        else:
            passed_over.append(index)
    # A competition too small for the rule still gets its number of test dives.
    test.update(passed_over[: config.num_test - len(test)])
    return ["test" if index in test else "train" for index in range(len(kinds))]
