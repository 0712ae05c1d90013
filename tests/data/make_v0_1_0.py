"""Makes v0.1.0, a project with a cache and runs of aqa 0.1.0 that must stay readable for ever.

Run once, with the program of that version; the folder is never made again:

    python make_v0_1_0.py v0.1.0/

The clips have no videos: their features, planted here, are imported.
"""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

CLIPS, TRAIN, SNIPPETS, DIM = 24, 18, 3, 5
PROTOCOL = """\
snippet_starts = [0, 1, 2]
exemplar_key = ["dive_number"]
label_transform = "raw"
"""
RUNS = {
    "gart": ["--seeds", "2", "--num-groups", "4", "--num-exemplars", "3"],
    "literature": ["--head", "usdl", "--mode", "direct", "--protocol", "literature"],
}


def write_project(project: Path) -> None:
    """A manifest of dives of two kinds, and features that tell their scores."""
    rng = np.random.default_rng(10)
    score = rng.uniform(4, 9, CLIPS).round(1)
    difficulty = rng.choice([1.6, 2.8, 3.2], CLIPS)
    features = rng.standard_normal((CLIPS, SNIPPETS, DIM))
    features[:, :, 0] = score[:, None] - 6
    (project / "manifests").mkdir(parents=True)
    (project / "aqa.toml").touch()
    (project / "manifests" / "dives.toml").write_text(PROTOCOL, encoding="utf-8")
    with open(project / "manifests" / "dives.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["clip_id", "video", "score", "split", "difficulty", "dive_number"])
        for n in range(CLIPS):
            points = round(3 * score[n] * difficulty[n], 2)
            split = "train" if n < TRAIN else "test"
            writer.writerow([f"dive-{n}", "none.mp4", points, split, difficulty[n], 100 + n % 2])
    np.savez(
        project / "features.npz",
        features=features.astype("<f4"),
        clip_id=np.array([f"dive-{n}" for n in range(CLIPS)]),
    )


def aqa(project: Path, *arguments: str) -> None:
    program = Path(sys.executable).with_name("aqa")
    subprocess.run([str(program), *arguments, "--dataset", "dives"], cwd=project, check=True)


def main() -> None:
    project = Path(sys.argv[1])
    write_project(project)
    aqa(project, "cache", "import", "features.npz", "--backbone-name", "planted")
    for name, options in RUNS.items():
        aqa(project, "fit-head", "--run", name, *options, "--hidden", "8", "--epochs", "4")
    (project / "features.npz").unlink()
    for left in ("claims", "video-index"):
        for folder in project.glob(f"cache/**/{left}"):
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
