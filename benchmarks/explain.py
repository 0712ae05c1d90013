"""Cost of the reasons on top of the score: predict, explain and its page, by turns.

python benchmarks/explain.py RUN VIDEO DIFFICULTY [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from aqa_pipeline.project import Project
from aqa_pipeline.report.explanation import page, view_of
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.scoring.explainer import Explainer


def main() -> None:
    run, video, difficulty = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    seconds: dict[str, list[float]] = {"predict": [], "explain": [], "page": []}
    with Explainer.load(run, project=Project.find(run)) as explainer:
        explanation = explainer.explain(
            video, ClipMetadata(difficulty=difficulty)
        )  # a first one warms up
        explainer.scorer.score(video, difficulty=difficulty)
        for _ in range(rounds):
            started = time.perf_counter()
            explainer.scorer.score(video, difficulty=difficulty)
            scored = time.perf_counter()
            explanation = explainer.explain(video, ClipMetadata(difficulty=difficulty))
            explained = time.perf_counter()
            page(view_of(explanation))
            seconds["predict"].append(scored - started)
            seconds["explain"].append(explained - scored)
            seconds["page"].append(time.perf_counter() - explained)
    median = {name: statistics.median(own) for name, own in seconds.items()}
    for name, value in median.items():
        print(f"{name}: {value:.2f} s, {value / median['predict']:.2f} of predict")


if __name__ == "__main__":
    main()
