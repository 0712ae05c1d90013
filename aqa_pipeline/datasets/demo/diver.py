"""Motion of the demo's diver: joint angles, ballistics, angular momentum.

A flat articulated body seen from the side. Its shape follows keyframed joint angles;
in the air its centre of mass follows a parabola and its rotation follows from a
constant angular momentum, so a tuck spins faster than a stretched body without being
told to. The angular momentum is solved for, in closed form, so that the diver arrives
at the water with exactly the entry angle its faults ask for.

Conventions
-----------
x, y
    Metres. The platform's edge is at ``(0, PLATFORM_METRES)``, the water at y = 0,
    x grows away from the tower.
time
    Seconds from take-off; negative while the toes are on the platform.
joint angles
    Degrees, 0 in a relaxed stance: hip, knee, elbow and neck flexion; shoulder is the
    raising of the arm (180: overhead); ankle is 90 with the sole on the ground and 0
    with pointed toes; split parts the thighs; lean turns the trunk while standing.
direction
    An angle from straight up, growing towards the face: ``(sin, cos)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import PchipInterpolator

FloatArray = npt.NDArray[np.float64]

GRAVITY = 9.81
PLATFORM_METRES = 10.0
#: Where a good dive enters the water, in metres from the platform's edge.
GOOD_DISTANCE_METRES = 1.3
#: Height of the centre of mass when the fingertips of a stretched diver touch the water.
ENTRY_HEIGHT_METRES = 1.05
TAKE_OFF_SPEED = 2.9
#: How long the preparation on the platform takes before the toes leave it.
PREPARATION_SECONDS = 1.1
#: Time constant with which the water stops the diver.
WATER_DRAG_SECONDS = 0.22

#: First digit of a dive's name -> (facing away from the tower?, rotates towards the face?,
#: lean at take-off in degrees).
GROUPS: dict[int, tuple[bool, bool, float]] = {
    1: (True, True, 16.0),  # forward
    2: (False, False, -16.0),  # back
    3: (True, False, -4.0),  # reverse
    4: (False, True, 8.0),  # inward
}


@dataclass(frozen=True)
class DiveKind:
    """What is announced before a dive.

    Attributes
    ----------
    group : {1, 2, 3, 4}
        Forward, back, reverse, inward.
    half_somersaults : {3, 5, 7}
        Odd, so that every dive enters the water head first.
    position : {"B", "C"}
        Pike or tuck.
    """

    group: Literal[1, 2, 3, 4]
    half_somersaults: Literal[3, 5, 7]
    position: Literal["B", "C"]

    @property
    def name(self) -> str:
        """As in the sport's tables, ``305C``: reverse, 2 1/2 somersaults, tuck."""
        return f"{self.group}0{self.half_somersaults}{self.position}"

    @property
    def difficulty(self) -> float:
        """Own formula, in tenths: more somersaults, a harder group and the pike cost more."""
        group_tenths = {1: 0, 2: 2, 3: 4, 4: 2}[self.group]
        return (4 + 4 * self.half_somersaults + group_tenths + 2 * (self.position == "B")) / 10


@dataclass(frozen=True)
class DiveFaults:
    """What can be wrong with a dive, and can be seen.

    Attributes
    ----------
    rotation_degrees : float
        Angle to the vertical at entry; positive is over-rotated, negative short.
    knee_degrees : float
        Bend of the knees wherever the legs should be straight.
    legs_degrees : float
        Angle between the thighs in the air.
    distance_metres : float
        Entry point minus the good one: positive is too far out, negative too near.
    splash : float
        0 (the water barely opens) to 1.
    """

    rotation_degrees: float = 0.0
    knee_degrees: float = 0.0
    legs_degrees: float = 0.0
    distance_metres: float = 0.0
    splash: float = 0.0


# --- the body ------------------------------------------------------------------------------

#: Metres; rounded from common anthropometric proportions of a person 1.70 m tall.
TRUNK, NECK, UPPER_ARM, FOREARM, THIGH, SHANK, FOOT = 0.50, 0.22, 0.28, 0.38, 0.42, 0.42, 0.19

#: Joints in the order of the last but one axis of every joint array. The far side's joints
#: follow the near side's.
JOINTS = (
    *("hip", "shoulder", "head"),
    *("elbow", "hand", "knee", "ankle", "toe"),
    *("far_elbow", "far_hand", "far_knee", "far_ankle", "far_toe"),
)
JOINT = {name: index for index, name in enumerate(JOINTS)}

#: (from joint, to joint, share of the body's mass); each moves like a uniform rod.
_RODS = (
    ("hip", "shoulder", 0.46),
    ("shoulder", "head", 0.08),
    *(("shoulder", side + "elbow", 0.028) for side in ("", "far_")),
    *((side + "elbow", side + "hand", 0.022) for side in ("", "far_")),
    *(("hip", side + "knee", 0.115) for side in ("", "far_")),
    *((side + "knee", side + "ankle", 0.050) for side in ("", "far_")),
    *((side + "ankle", side + "toe", 0.015) for side in ("", "far_")),
)
_FROM = np.array([JOINT[start] for start, _, _ in _RODS])
_TO = np.array([JOINT[end] for _, end, _ in _RODS])
_MASS = np.array([mass for _, _, mass in _RODS]) / sum(mass for _, _, mass in _RODS)

ANGLES = ("hip", "knee", "shoulder", "elbow", "ankle", "neck", "split", "lean")


def pose(**angles: float) -> FloatArray:
    """One row of joint angles, in degrees; those not named are 0. Shape ``(len(ANGLES),)``."""
    return np.array([angles.pop(name, 0.0) for name in ANGLES])


def skeleton(poses: FloatArray, trunk_degrees: FloatArray) -> FloatArray:
    """Joint positions relative to the hip.

    Parameters
    ----------
    poses : ndarray, shape=(n, len(ANGLES))
        Joint angles, in degrees.
    trunk_degrees : ndarray, shape=(n,)
        Direction of the trunk, hip to shoulder.

    Returns
    -------
    ndarray, shape=(n, len(JOINTS), 2)
        Metres; the diver faces +x.
    """
    hip, knee, shoulder, elbow, ankle, neck, split, _ = np.moveaxis(poses, -1, 0)
    joints = np.zeros((len(poses), len(JOINTS), 2))

    def reach(start: str, end: str, length: float, direction: FloatArray) -> None:
        angle = np.radians(direction)
        step = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
        joints[:, JOINT[end]] = joints[:, JOINT[start]] + length * step

    reach("hip", "shoulder", TRUNK, trunk_degrees)
    reach("shoulder", "head", NECK, trunk_degrees + neck)
    for side, sign in (("", 1.0), ("far_", -1.0)):
        arm = trunk_degrees + 180 - shoulder + 3 * sign
        reach("shoulder", side + "elbow", UPPER_ARM, arm)
        reach(side + "elbow", side + "hand", FOREARM, arm - elbow)
        thigh = trunk_degrees + 180 - hip - sign * split / 2
        reach("hip", side + "knee", THIGH, thigh)
        reach(side + "knee", side + "ankle", SHANK, thigh + knee)
        reach(side + "ankle", side + "toe", FOOT, thigh + knee - ankle)
    return joints


def centre_of_mass(joints: FloatArray) -> FloatArray:
    """Centre of mass of the rods. Shape ``(n, len(JOINTS), 2)`` -> ``(n, 2)``."""
    middles = (joints[:, _FROM] + joints[:, _TO]) / 2
    return np.asarray(np.einsum("nrk,r->nk", middles, _MASS))


def flight_trunk(poses: FloatArray, step_seconds: float, *, start: float, end: float) -> FloatArray:
    """Direction of the trunk in free flight, from a constant angular momentum.

    A body that changes its shape has ``L = I w + A``: I is its moment of inertia about the
    centre of mass, w the turning of the trunk, A what the limbs contribute by moving
    relative to it. L is constant, hence w = (L - A) / I, and the L that turns the trunk
    from `start` to `end` is found by solving one linear equation.

    Parameters
    ----------
    poses : ndarray, shape=(n, len(ANGLES))
        Joint angles at equal steps of `step_seconds`.
    start, end : float
        First and last direction, in degrees; whole turns count.

    Returns
    -------
    ndarray, shape=(n,)
        Degrees.
    """
    joints = skeleton(poses, np.zeros(len(poses)))
    joints = joints - centre_of_mass(joints)[:, None]
    rods = joints[:, _TO] - joints[:, _FROM]
    middles = (joints[:, _FROM] + joints[:, _TO]) / 2
    rod_inertia = _MASS * (rods**2).sum(axis=2) / 12

    velocity = np.gradient(middles, step_seconds, axis=0)
    direction = np.unwrap(np.arctan2(rods[..., 0], rods[..., 1]), axis=0)
    turning = np.gradient(direction, step_seconds, axis=0)
    swing = middles[..., 1] * velocity[..., 0] - middles[..., 0] * velocity[..., 1]
    limb_momentum = (_MASS * swing + rod_inertia * turning).sum(axis=1)
    inertia = (_MASS * (middles**2).sum(axis=2) + rod_inertia).sum(axis=1)

    def integral(rate: FloatArray) -> FloatArray:
        return np.asarray(cumulative_trapezoid(rate, dx=step_seconds, initial=0))

    per_momentum = integral(1 / inertia)
    by_limbs = integral(-limb_momentum / inertia)
    momentum = (np.radians(end - start) - by_limbs[-1]) / per_momentum[-1]
    return np.asarray(start + np.degrees(momentum * per_momentum + by_limbs))


# --- a dive --------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiveMotion:
    """A dive, sampled.

    Attributes
    ----------
    joints : ndarray, shape=(n, len(JOINTS), 2)
        Metres, in the scene.
    centre : ndarray, shape=(n, 2)
        Centre of mass, in metres.
    trunk_degrees : ndarray, shape=(n,)
        Direction of the trunk, towards the face, whole turns counted.
    entry_seconds : float
        When the hands reach the water.
    entry_x : float
        Where they do, in metres from the platform's edge.
    """

    joints: FloatArray
    centre: FloatArray
    trunk_degrees: FloatArray
    entry_seconds: float
    entry_x: float


_STAND = pose(shoulder=12, elbow=8, ankle=90)
_ARMS_UP = pose(shoulder=172, elbow=6, ankle=90)
_CROUCH = pose(hip=84, knee=78, shoulder=-35, elbow=10, ankle=112, neck=-12, lean=30)
_TUCK = pose(hip=122, knee=132, shoulder=24, elbow=34, ankle=18, neck=32)
_PIKE = pose(hip=134, shoulder=98, elbow=4, ankle=8, neck=28)
_LINE = pose(shoulder=179, elbow=0, ankle=8, neck=6)


def _keyframes(kind: DiveKind, faults: DiveFaults, flight_seconds: float) -> PchipInterpolator:
    """Joint angles over time, smooth and without overshoot."""
    bend = pose(knee=faults.knee_degrees, hip=0.45 * faults.knee_degrees)
    parted = pose(split=faults.legs_degrees)
    lean = GROUPS[kind.group][2]
    take_off = pose(hip=8, knee=6, shoulder=168, elbow=4, ankle=28, lean=lean)
    folded = _TUCK if kind.position == "C" else _PIKE + bend
    line = _LINE + bend + parted
    # More somersaults leave less time to be stretched before the water.
    opening = flight_seconds * {3: 0.50, 5: 0.58, 7: 0.66}[kind.half_somersaults]
    keys = [
        (-PREPARATION_SECONDS - 10, _STAND),
        (-PREPARATION_SECONDS, _STAND),
        (-0.75, _ARMS_UP),
        (-0.28, _CROUCH),
        (0.0, take_off),
        (0.32, folded + parted),
        (opening, folded + parted),
        (opening + 0.22, line),
        (flight_seconds, line),
        (flight_seconds + 10, line),
    ]
    return PchipInterpolator([time for time, _ in keys], np.stack([angles for _, angles in keys]))


def dive_motion(kind: DiveKind, faults: DiveFaults, times: FloatArray) -> DiveMotion:
    """Move the diver through one dive.

    Parameters
    ----------
    kind : DiveKind
    faults : DiveFaults
    times : ndarray, shape=(n,)
        Seconds from take-off, ascending.

    Returns
    -------
    DiveMotion
    """
    away, towards_face, lean = GROUPS[kind.group]
    facing = np.array([1.0 if away else -1.0, 1.0])
    edge = np.array([0.0, PLATFORM_METRES])

    def standing(poses: FloatArray) -> FloatArray:
        joints = skeleton(poses, poses[:, ANGLES.index("lean")])
        return np.asarray((joints - joints[:, JOINT["toe"], None]) * facing + edge)

    # The parabola begins where the stretched body stands on its toes.
    take_off_pose = _keyframes(kind, faults, 1.7)(np.zeros(1))
    start = centre_of_mass(standing(take_off_pose))[0]
    drop = start[1] - ENTRY_HEIGHT_METRES
    flight_seconds = (TAKE_OFF_SPEED + np.sqrt(TAKE_OFF_SPEED**2 + 2 * GRAVITY * drop)) / GRAVITY
    entry_x = GOOD_DISTANCE_METRES + faults.distance_metres
    speed_x = (entry_x - start[0]) / flight_seconds

    keyframes = _keyframes(kind, faults, flight_seconds)
    grid = np.linspace(0.0, flight_seconds, 400)
    turn = 180.0 * kind.half_somersaults + faults.rotation_degrees
    trunk = flight_trunk(keyframes(grid), grid[1], start=lean, end=turn if towards_face else -turn)
    spin = (trunk[-1] - trunk[-2]) / grid[1]

    # Under water both the fall and the turning die away.
    in_air = np.clip(times, 0.0, flight_seconds)
    in_water = WATER_DRAG_SECONDS * -np.expm1(
        -np.maximum(times - flight_seconds, 0.0) / WATER_DRAG_SECONDS
    )
    fall_speed = GRAVITY * flight_seconds - TAKE_OFF_SPEED
    centre = start + np.stack(
        [
            speed_x * (in_air + in_water),
            TAKE_OFF_SPEED * in_air - GRAVITY / 2 * in_air**2 - fall_speed * in_water,
        ],
        axis=1,
    )
    poses = keyframes(times)
    trunk_degrees = np.interp(times, grid, trunk) + 0.5 * spin * in_water
    on_platform = times < 0
    trunk_degrees[on_platform] = poses[on_platform, ANGLES.index("lean")]

    joints = skeleton(poses, trunk_degrees)
    joints = (joints - centre_of_mass(joints)[:, None]) * facing + centre[:, None]
    joints[on_platform] = standing(poses[on_platform])
    centre[on_platform] = centre_of_mass(joints[on_platform])
    return DiveMotion(joints, centre, trunk_degrees, float(flight_seconds), float(entry_x))


def walk_motion(times: FloatArray, *, start_x: float, speed: float) -> FloatArray:
    """Joints of a diver who walks along the platform towards its edge and stops there.

    Parameters
    ----------
    times : ndarray, shape=(n,)
        Seconds.
    start_x : float
        Where the walk begins, in metres; negative is behind the edge.
    speed : float
        Metres a second; 0 stands still.

    Returns
    -------
    ndarray, shape=(n, len(JOINTS), 2)
    """
    hip_x = np.minimum(start_x + speed * times, -0.25)
    walking = (speed > 0) & (start_x + speed * times < -0.25)
    phase = 2 * np.pi * 0.75 * speed * (times - times[0])
    poses = np.tile(_STAND, (len(times), 1))
    poses[:, ANGLES.index("split")] = np.where(walking, 46 * np.sin(phase), 0.0)
    poses[:, ANGLES.index("knee")] = np.where(walking, 14 + 10 * np.cos(2 * phase), 0.0)
    poses[:, ANGLES.index("hip")] = np.where(walking, 8.0, 0.0)
    joints = skeleton(poses, np.full(len(times), 2.0))
    ground = joints[..., 1].min(axis=1)
    joints[..., 0] += hip_x[:, None]
    joints[..., 1] += (PLATFORM_METRES - ground)[:, None]
    return joints
