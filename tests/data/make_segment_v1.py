"""Makes segment-v1.h5, a segment of format version 1 that must stay readable for ever.

Run once, when version 1 was current; the file is never made again. It writes with
plain h5py, following docs/cache-format.md and nothing of the library, so that it also
shows that the page is enough to write a segment.
"""

import hashlib
import json
import struct
from pathlib import Path

import h5py
import numpy as np

FINGERPRINT = "0123456789abcdef" * 4
CLIP_IDS = ["dive-1", "Sprung Ü 2", "飛び込み 3"]
SOURCE_IDS = ["sha256-aa-100", "sha256-aa-100", "sha256-bb-200"]
VIEW_NAMES = ["plain", "flip"]
WINDOW_FRAMES, SNIPPETS, DIM = 6, 2, 4


def sha256(clip: int, features: np.ndarray, frames: np.ndarray, times: np.ndarray) -> bytes:
    digest = hashlib.sha256(b"aqa-clip-1\n")
    for part in (
        CLIP_IDS[clip].encode(),
        SOURCE_IDS[clip].encode(),
        json.dumps(VIEW_NAMES).encode(),
        frames[clip].astype("<i8").tobytes(),
        times[clip].astype("<f8").tobytes(),
        np.array(features[clip].shape, "<u8").tobytes(),
        features[clip].astype("<f4").tobytes(),
    ):
        digest.update(struct.pack("<Q", len(part)) + part)
    return digest.digest()


def main() -> None:
    clips = len(CLIP_IDS)
    features = np.arange(clips * len(VIEW_NAMES) * SNIPPETS * DIM, dtype="<f4") / 8
    features = features.reshape(clips, len(VIEW_NAMES), SNIPPETS, DIM)
    # The first clip's window begins before its video does.
    frames = np.arange(WINDOW_FRAMES) + np.array([[-2], [50], [108_168]])
    times = np.maximum(frames, 0) / 25.0
    digests = [sha256(clip, features, frames, times) for clip in range(clips)]
    path = Path(__file__).with_name("segment-v1.h5")
    with h5py.File(path, "x", libver=("v108", "v108")) as file:
        file.attrs["format"] = "aqa-feature-segment"
        file.attrs["format_version"] = 1
        file.attrs["fingerprint"] = FINGERPRINT
        file.attrs["created_utc"] = "2026-01-02T03:04:05.000006+00:00"
        file.attrs["machines"] = json.dumps([{"cpu": "any", "torch": "2.13.0"}])
        for name, texts in (
            ("view_names", VIEW_NAMES),
            ("clip_id", CLIP_IDS),
            ("source_id", SOURCE_IDS),
        ):
            data = [text.encode() for text in texts]
            dtype = h5py.string_dtype("utf-8", length=max(map(len, data)))
            file.create_dataset(name, data=np.array(data, dtype=dtype))
        file.create_dataset("frame_index", data=frames.astype("<i8"))
        file.create_dataset("pts_seconds", data=times.astype("<f8"))
        file.create_dataset("features", data=features)
        file.create_dataset("sha256", data=np.frombuffer(b"".join(digests), "u1").reshape(-1, 32))


if __name__ == "__main__":
    main()
