from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.backbone.encoder import i3d_backbone
from aqa_pipeline.config import Protocol
from aqa_pipeline.errors import ClipError, UsageError
from aqa_pipeline.media.clip import ClipRequest, FrameChunk, StreamHead
from aqa_pipeline.report.slide_plot import write_plot
from aqa_pipeline.scoring.assessor import ClipMetadata, FeatureScorer
from aqa_pipeline.scoring.scorer import Scorer
from aqa_pipeline.scoring.slide import SlidingScores, slide, snippet_protocol, window_starts
from tests.support.small_run import load_scorer, make_run
from tests.support.videos import write_video

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    _, folder = make_run(tmp_path_factory.mktemp("slide"))
    with load_scorer(folder) as own:
        yield own


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("v") / "v.mp4", 150, size=(160, 128))


def test_windows_of_a_stretch_by_hand() -> None:
    starts = window_starts("last", window_frames=9, start_frame=5, end_frame=30, stride=4)
    assert starts.tolist() == [5, 9, 13, 17, 21]
    with pytest.raises(UsageError, match="spreads its frames evenly"):
        window_starts("even", window_frames=9, start_frame=0, end_frame=30, stride=4)


def test_each_window_gets_the_score_it_gets_on_its_own(scorer: Scorer, video: Path) -> None:
    told: list[tuple[int, int]] = []
    slid = scorer.slide(
        video,
        ClipMetadata(start_frame=20, end_frame=140, difficulty=2.0),
        stride=7,
        progress=lambda done, total: told.append((done, total)),
    )
    assert slid.starts.tolist() == list(range(20, 132, 7))
    assert told[0] == (0, 16)
    assert told[-1] == (16, 16)
    np.testing.assert_allclose(slid.seconds, (slid.starts + 8) / 25)
    for place in (0, 6, 15):
        start = int(slid.starts[place])
        alone = scorer.score(video, start_frame=start, end_frame=start + 9, difficulty=2.0)
        assert slid.scores[place] == alone.score
        assert slid.distances[place] == alone.distance
        assert alone.interval is not None
        assert slid.half_width == pytest.approx(alone.interval[1] - alone.score)
    table = slid.table()
    assert table.columns.tolist()[:4] == ["start_frame", "end_frame", "seconds", "prediction"]
    assert len(table) == 16


def test_too_short_a_video_says_what_to_do(scorer: Scorer, video: Path) -> None:
    with pytest.raises(UsageError, match="8 frames are shorter than one window of 9"):
        scorer.slide(video, ClipMetadata(end_frame=8, difficulty=2.0))
    with pytest.raises(UsageError, match="scores by difficulty, which is not given"):
        scorer.slide(video)
    with pytest.raises(ClipError, match="no such video"):
        scorer.slide("gone.mp4", ClipMetadata(difficulty=2.0))


PROTOCOL = Protocol(name="p", window_frames=30, snippet_frames=4, snippet_starts=(0, 10, 20, 26))


class CountingAssessor(FeatureScorer):
    """Scores a window by its features alone, and keeps them."""

    def __init__(self) -> None:
        self.coverage, self.seen = 0.9, list[np.ndarray]()

    def score(self, features, metadata, clip=None):  # type: ignore[no-untyped-def]
        self.seen.append(features)
        return Slidable(float(features.sum()))


@dataclasses.dataclass
class Slidable:
    score: float
    distance: float = 0.0
    usual_distance: float = 1.0
    interval: None = None


def chunks(length: int, size: int) -> Iterator[FrameChunk | StreamHead]:
    """Frame i is grey level i."""
    yield StreamHead(0, length, length)
    for first in range(0, length, size):
        numbers = np.arange(first, min(first + size, length), dtype=np.uint8)
        frames = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 2, 2, 3))
        yield FrameChunk(first, frames, numbers / 25)


@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_each_snippet_is_encoded_once_in_full_batches(size: int) -> None:
    batches = []

    def encode(frames):  # type: ignore[no-untyped-def]
        assert frames.shape == (16, 2, 2, 3)
        batches.append(frames[::4, 0, 0, 0].tolist())
        return frames[::4, 0, 0, :1].astype(np.float32)

    assessor = CountingAssessor()
    slid = slide(
        chunks(120, size),
        assessor,
        encode,
        request=ClipRequest(Path("v"), PROTOCOL),
        metadata=ClipMetadata(),
        stride=10,
    )
    assert slid.starts.tolist() == list(range(0, 100, 10))
    for start, features in zip(slid.starts, assessor.seen, strict=True):
        assert features[:, 0].tolist() == [start, start + 10, start + 20, start + 26]
    encoded = [first for batch in batches for first in batch]
    wanted = sorted({s + t for s in range(0, 100, 10) for t in (0, 10, 20, 26)})
    assert sorted(set(encoded)) == wanted
    # Only the last batch is filled up.
    assert len(batches) == -(-len(wanted) // 4)
    assert slid.half_width == np.inf


def test_the_snippets_of_a_batch_do_not_overlap() -> None:
    protocol = snippet_protocol(Protocol(name="p"))
    assert protocol.window_frames == 160
    assert protocol.snippet_starts == tuple(range(0, 160, 16))


def test_snippets_have_their_windows_features_whatever_batch_they_are_in(
    i3d_weights: Path,
) -> None:
    protocol = Protocol(
        name="p", window_frames=24, snippet_frames=16, snippet_starts=(0, 8), pixels="demo"
    )
    frames = np.random.default_rng(0).integers(0, 256, (24, 112, 112, 3), dtype=np.uint8)
    window = i3d_backbone(i3d_weights, protocol)()(frames)
    apart = np.concatenate([frames[8:24], frames[0:16]])
    single = i3d_backbone(i3d_weights, snippet_protocol(protocol))()(apart)
    np.testing.assert_allclose(single[::-1], window, rtol=1e-4, atol=1e-5)


def made(scores: list[float], distances: list[float]) -> SlidingScores:
    count = len(scores)
    return SlidingScores(
        video="v",
        video_frames=10 * count + 20,
        window_frames=20,
        starts=np.arange(count) * 10,
        seconds=np.arange(count) / 2.5,
        scores=np.array(scores),
        half_width=3.0,
        coverage=0.9,
        distances=np.array(distances),
        usual_distance=1.0,
    )


def test_windows_that_stand_out_do_not_overlap() -> None:
    slid = made([1, 9, 8, 7, 10, 3], [0.5, 0.9, 0.1, 0.2, 2.0, 0.3])
    # 4 is the highest but unlike training; 2 overlaps 1.
    assert slid.highest(3) == [1, 3, 5]
    assert slid.most_familiar(2) == [2, 5]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_plot_is_a_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plot{suffix}"
    write_plot(made([1, 9, 8, 7, 10, 3], [0.5, 0.9, 0.1, 0.2, 2.0, 0.3]), path)
    content = path.read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    if suffix == ".svg":
        text = "".join(ET.fromstring(content).itertext())
        assert "score, points" in text
        assert "90 % interval" in text


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a plot ends in \.png, \.svg, \.pdf"):
        write_plot(made([1], [0]), tmp_path / "plot.doc")
