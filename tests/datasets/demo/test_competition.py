"""The demo data: its sport and its movement."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from aqa_pipeline.datasets.demo import dataset as demo
from aqa_pipeline.datasets.demo.competition import (
    MIN_TRAIN_PER_DIFFICULTY,
    PROGRAMME,
    DemoConfig,
    final_score,
    judge_marks,
    noiseless_mark,
    plan_competition,
)
from aqa_pipeline.datasets.demo.diver import (
    ANGLES,
    GOOD_DISTANCE_METRES,
    GROUPS,
    JOINT,
    PLATFORM_METRES,
    DiveFaults,
    DiveKind,
    centre_of_mass,
    dive_motion,
    flight_trunk,
    pose,
)
from aqa_pipeline.errors import UsageError

ALL_KINDS = [kind for kind, _ in PROGRAMME]
#: One fault each, large enough to be seen.
SINGLE_FAULTS = {
    "rotation_degrees": 20.0,
    "knee_degrees": 30.0,
    "legs_degrees": 25.0,
    "distance_metres": 0.5,
    "splash": 0.8,
}


# --- the sport -----------------------------------------------------------------------------


def test_final_score_of_seven_hand_sorted_marks() -> None:
    # Sorted: 5, 6, [6.5, 7, 7.5], 8, 9.5.
    assert final_score([7.0, 5.0, 9.5, 6.0, 7.5, 8.0, 6.5], 3.0) == 63.0
    assert final_score([0.0, 0.0, 10.0, 10.0, 10.0, 10.0, 10.0], 2.4) == 72.0


def test_difficulty_by_hand() -> None:
    assert DiveKind(1, 5, "C").difficulty == 2.4
    assert DiveKind(3, 5, "B").difficulty == 3.0
    assert DiveKind(2, 7, "B").difficulty == 3.6
    assert DiveKind(3, 5, "C").name == "305C"


@pytest.mark.parametrize(
    ("fault", "value"),
    [*SINGLE_FAULTS.items(), ("rotation_degrees", -20.0), ("distance_metres", -0.5)],
)
def test_every_fault_lowers_the_mark_steadily(fault: str, value: float) -> None:
    marks = [
        noiseless_mark(replace(DiveFaults(), **{fault: value * step})) for step in (0, 0.25, 0.5, 1)
    ]
    assert (np.diff(marks) < 0).all()


def test_marks_are_half_points_between_0_and_10() -> None:
    rng = np.random.default_rng(0)
    biases = np.zeros(7)
    marks = np.array([judge_marks(mark, biases, rng) for mark in np.linspace(0, 10, 200)])
    assert ((2 * marks) % 1 == 0).all()
    assert marks.min() == 0.0
    assert marks.max() == 10.0


@pytest.mark.parametrize("seed", range(8))
def test_competition_has_the_asked_sizes_and_exemplars_for_every_test_dive(seed: int) -> None:
    dives = plan_competition(DemoConfig(seed=seed))
    splits = Counter(dive.split for dive in dives)
    assert splits == {"train": 200, "test": 64}
    train = Counter(dive.kind.difficulty for dive in dives if dive.split == "train")
    test = {dive.kind.difficulty for dive in dives if dive.split == "test"}
    assert 7 <= len(test) <= 9
    assert min(train[difficulty] for difficulty in test) >= MIN_TRAIN_PER_DIFFICULTY


def test_scores_are_neither_given_away_by_difficulty_nor_drowned_in_noise() -> None:
    rows = demo.demo_manifest()
    train, test = (rows[rows["split"] == split] for split in ("train", "test"))
    guess = test["difficulty"].map(train.groupby("difficulty")["score"].mean())
    assert 0.3 < spearmanr(guess, test["score"]).statistic < 0.65
    assert spearmanr(test["noiseless_score"], test["score"]).statistic > 0.97
    marks = rows["score"] / rows["difficulty"] / 3
    assert marks.between(4, 9).mean() > 0.9
    assert marks.std() > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, r"demo seed -1: expected 0 or more"),
        ({"num_test": 0}, r"at least one broadcast, .* got 8, 200, 0 and 25"),
        ({"num_broadcasts": 500}, r"264 dives cannot fill 500 broadcasts"),
        ({"width": 175}, r"175 x 128 pixels: both sides have to be even"),
    ],
)
def test_config_refuses_what_cannot_be_rendered(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DemoConfig(**settings)


# --- movement ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("error", [-20.0, 0.0, 15.0])
def test_diver_enters_head_first_at_the_angle_its_faults_ask_for(
    kind: DiveKind, error: float
) -> None:
    faults = DiveFaults(rotation_degrees=error, distance_metres=0.2)
    entry = dive_motion(kind, faults, np.zeros(1)).entry_seconds
    motion = dive_motion(kind, faults, np.array([entry]))
    hip, shoulder = motion.joints[0, JOINT["hip"]], motion.joints[0, JOINT["shoulder"]]
    hand = motion.joints[0, JOINT["hand"]]
    down = hip - shoulder
    tilt = np.degrees(np.arctan2(abs(down[0]), down[1]))
    assert tilt == pytest.approx(abs(error), abs=0.1)
    assert motion.centre[0, 0] == pytest.approx(GOOD_DISTANCE_METRES + 0.2)
    assert abs(hand[1]) < 0.2
    forwards = 1 if kind.group in (1, 4) else -1
    turn = forwards * (180 * kind.half_somersaults + error)
    assert motion.trunk_degrees[0] == pytest.approx(turn)


def test_leg_faults_are_there_at_entry_to_the_degree() -> None:
    def angle(joints: np.ndarray, first: str, middle: str, last: str) -> float:
        legs = (
            joints[JOINT[first]] - joints[JOINT[middle]],
            joints[JOINT[last]] - joints[JOINT[middle]],
        )
        cosine = legs[0] @ legs[1] / np.prod([np.linalg.norm(leg) for leg in legs])
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))

    faults = DiveFaults(knee_degrees=25, legs_degrees=18)
    joints = dive_motion(DiveKind(2, 5, "B"), faults, np.array([1.7])).joints[0]
    assert angle(joints, "knee", "hip", "far_knee") == pytest.approx(18)
    assert angle(joints, "hip", "knee", "ankle") == pytest.approx(180 - 25)


def test_over_rotated_forward_dive_falls_on_its_back() -> None:
    """Past the vertical, a forward dive's legs lead away from the tower."""
    kind = DiveKind(1, 5, "C")
    legs = []
    for error in (-20.0, 20.0):
        faults = DiveFaults(rotation_degrees=error)
        entry = dive_motion(kind, faults, np.zeros(1)).entry_seconds
        joints = dive_motion(kind, faults, np.array([entry])).joints[0]
        legs.append(joints[JOINT["knee"], 0] - joints[JOINT["shoulder"], 0])
    assert legs[0] < 0 < legs[1]


def test_centre_of_mass_flies_on_a_parabola() -> None:
    times = np.linspace(0.0, 1.7, 300)
    motion = dive_motion(DiveKind(2, 7, "B"), DiveFaults(knee_degrees=10, legs_degrees=8), times)
    np.testing.assert_allclose(centre_of_mass(motion.joints), motion.centre, atol=1e-9)
    acceleration = np.diff(motion.centre, 2, axis=0) / (times[1] - times[0]) ** 2
    np.testing.assert_allclose(acceleration, np.tile([0.0, -9.81], (298, 1)), atol=1e-6)


def test_tuck_spins_faster_than_a_stretched_body() -> None:
    motion = dive_motion(DiveKind(1, 7, "C"), DiveFaults(), np.arange(0.0, 1.75, 0.01))
    speed = np.abs(np.diff(motion.trunk_degrees)) / 0.01
    assert speed[60] > 2.5 * speed[-1]


def test_rigid_body_turns_evenly() -> None:
    poses = np.tile(pose(hip=30, shoulder=170), (50, 1))
    trunk = flight_trunk(poses, 0.02, start=10.0, end=370.0)
    np.testing.assert_allclose(trunk, np.linspace(10, 370, 50), atol=1e-9)


def test_legs_raised_and_lowered_tip_the_trunk_there_and_back() -> None:
    """A shape that returns by the way it went turns nothing: the momentum found is 0."""
    poses = np.tile(pose(shoulder=10), (201, 1))
    poses[:, ANGLES.index("hip")] = 45 * (1 - np.cos(np.linspace(0, 2 * np.pi, 201)))
    trunk = flight_trunk(poses, 0.005, start=0.0, end=0.0)
    np.testing.assert_allclose(trunk, trunk[::-1], atol=0.1)
    # The legs turn backwards (away from growing angles), so the trunk turns forwards.
    assert 10 < trunk[100] < 80


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.name)
def test_toes_stay_on_the_platform_until_take_off(kind: DiveKind) -> None:
    times = np.arange(-1.3, 0.0, 0.04)
    motion = dive_motion(kind, DiveFaults(), times)
    toes = motion.joints[:, JOINT["toe"]]
    np.testing.assert_allclose(toes, np.tile([0.0, PLATFORM_METRES], (len(times), 1)), atol=1e-9)
    away = GROUPS[kind.group][0]
    assert (motion.joints[0, JOINT["ankle"], 0] < 0) == away
