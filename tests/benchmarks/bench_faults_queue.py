"""A thousand studies in a storm of faults, several times over: what was lost, doubled, and how long work stood still.

    python -m tests.benchmarks.bench_faults_queue --seeds 5

Each seed is an installation of its own on loopback: PostgreSQL, Redis, EHR, PACS, an API and two workers, each a
process. One line of JSON a seed; exit status 1 if any study was lost or written twice, or any limit was passed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.faults.cluster import running_cluster
from tests.faults.storm import Figures, Storm
from tests.faults.studies import patient_id


def main() -> None:
    parser = argparse.ArgumentParser(description="Faults while studies are queued.")
    parser.add_argument("--seeds", type=int, default=5, help="how many storms, each with the next seed")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds a storm may take")
    arguments = parser.parse_args()
    found = []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            figures = run(Path(folder), seed, arguments)
        sys.stdout.write(json.dumps(figures.as_dict()) + "\n")
        sys.stdout.flush()
        found.append(figures)
    raise SystemExit(0 if all(one.is_within_limits for one in found) else 1)


def run(folder: Path, seed: int, arguments: argparse.Namespace) -> Figures:
    patients = [patient_id(number) for number in range(arguments.studies)]
    with running_cluster(folder, studies=arguments.studies, workers=arguments.workers) as cluster:
        return Storm(cluster, patients, seed=seed, limit_s=arguments.limit).run()


if __name__ == "__main__":
    main()
