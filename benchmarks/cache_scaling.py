"""Growth of opening, resuming, loading and verifying a feature cache with its size.

    python benchmarks/cache_scaling.py FOLDER [CLIPS ...]

Writes made-up features (10 snippets of 1024 numbers, 256 clips a segment) into FOLDER,
which must be new, and prints one line for each size. 100,000 clips take 4.3 GB of disk
and, while loading, as much memory.
"""

import sys
import time
from pathlib import Path

import numpy as np

from aqa_pipeline.cache.compact import compact
from aqa_pipeline.cache.fingerprint import Fingerprint
from aqa_pipeline.cache.reader import ClipQuery, FeatureCache
from aqa_pipeline.cache.verify import verify
from aqa_pipeline.cache.writer import ClipFeatures, SegmentWriter
from aqa_pipeline.config import PIXEL_PRESETS, Protocol

PROTOCOL = Protocol("bench")
FINGERPRINT = Fingerprint(
    backbone="i3d",
    weights_sha256="00" * 32,
    pixels=PIXEL_PRESETS["kinetics"],
    window_rule=PROTOCOL.window_rule,
    window_frames=PROTOCOL.window_frames,
    snippet_frames=PROTOCOL.snippet_frames,
    snippet_starts=PROTOCOL.snippet_starts,
)


def timed(what: str, call):  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    result = call()
    print(f"  {what} {time.perf_counter() - start:.2f} s", end="", flush=True)
    return result


def main() -> None:
    folder = Path(sys.argv[1])
    sizes = [int(text) for text in sys.argv[2:]] or [1412, 10_000, 20_000, 50_000, 100_000]
    frames = np.arange(PROTOCOL.window_frames, dtype=np.int64)
    features = np.random.default_rng(0).standard_normal((1, 10, 1024), dtype=np.float32)
    ids = [f"clip-{number}" for number in range(max(sizes))]
    starts = np.arange(max(sizes))[:, None] * 10
    written = 0
    for size in sizes:
        wanted = ClipQuery(
            ids[:size], [f"sha256-{i // 20}" for i in range(size)], frames + starts[:size]
        )

        def write(first: int = written, end: int = size, wanted: ClipQuery = wanted) -> None:
            with SegmentWriter(folder, FINGERPRINT) as writer:
                for row in range(first, end):
                    writer.add(
                        ClipFeatures(
                            wanted.clip_ids[row],
                            wanted.source_ids[row],
                            wanted.frame_index[row],
                            wanted.frame_index[row] / 25.0,
                            features,
                        )
                    )

        print(f"{size} clips:", end="")
        timed(f"write {size - written} more", write)
        written = size
        cache = timed("open", lambda: FeatureCache.open(folder))
        found = timed("resume", lambda cache=cache, wanted=wanted: cache.cached(wanted))
        if not found.all():
            raise SystemExit("clips are missing")
        timed("load", lambda cache=cache, wanted=wanted: cache.load(wanted))
        timed("load and verify", lambda cache=cache, wanted=wanted: cache.load(wanted, verify=True))
        timed("verify", lambda: verify(folder))
        print()
    timed("compact", lambda: compact(folder))
    timed("open", lambda: FeatureCache.open(folder))
    print()


if __name__ == "__main__":
    main()
