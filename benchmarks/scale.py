"""How long a large extraction takes on many machines, by simulation, where a division is not enough.

    python benchmarks/scale.py                          # 10^8 clips on 100 machines
    python benchmarks/scale.py --clips 1e6 --machines 8 --clips-per-s 40

The division `clips / (machines x clips per second)` knows nothing of machines that differ, of clips that
differ, of machines that die, or of the wait for the last one. This simulates them twice:

    fixed shares   machine i of n works on shards i, i + n, ...: `calmctl extract --shard i/n`, a job array
    a queue        a free machine takes the next shard: `calmctl extract --ray`, or small job-array parts

A clip costs a log-normal time; a machine has a speed of its own, log-normal around their average; a machine dies at
exponential intervals, loses the shard it was writing and nothing else, and is back after `--restart` seconds.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass

import numpy as np

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is simulated.

    Attributes:
        clips: How many there are.
        machines: How many work on them.
        clips_per_s: What a machine of average speed does.
        shard: Clips a shard: what is lost when a machine dies.
        clip_cv: Standard deviation of a clip's time over its mean.
        machine_cv: The same of the machines' speeds.
        mtbf_s: Mean time between two deaths of one machine, in seconds; infinity: none.
        restart_s: How long a dead machine is away.
    """

    clips: int
    machines: int
    clips_per_s: float
    shard: int = 64
    clip_cv: float = 1.0
    machine_cv: float = 0.2
    mtbf_s: float = float("inf")
    restart_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds until everything is done, until half of the machines are idle, and shards done twice."""

    total_s: float
    half_idle_s: float
    lost_shards: int


def ideal_s(cluster: Cluster) -> float:
    """The division: seconds with equal clips, equal machines and no deaths."""
    return cluster.clips / (cluster.machines * cluster.clips_per_s)


def simulate(cluster: Cluster, *, queue: bool, seed: int) -> Outcome:
    """One draw of the machines, the shards and the deaths, with fixed shares or with a queue."""
    rng = np.random.default_rng(seed)
    shards = -(-cluster.clips // cluster.shard)
    # A shard is a sum of many clips: normal by the central limit theorem, exact in mean and variance.
    mean = cluster.shard / cluster.clips_per_s
    spread = cluster.clip_cv / cluster.shard**0.5
    work = mean * np.clip(1 + spread * rng.standard_normal(shards), 0.05, None)
    speeds = _log_normal(rng, cluster.machine_cv, cluster.machines)
    slowness = speeds.mean() / speeds  # together they do what the division says
    deaths = [_Deaths(rng, cluster) for _ in range(cluster.machines)]
    if queue:
        free = [(0.0, machine) for machine in range(cluster.machines)]
        ends = np.zeros(cluster.machines)
        for effort in work.tolist():
            start, machine = heapq.heappop(free)
            ends[machine] = deaths[machine].finish(start, effort * slowness[machine])
            heapq.heappush(free, (float(ends[machine]), machine))
    else:
        ends = np.zeros(cluster.machines)
        for number, effort in enumerate(work.tolist()):
            machine = number % cluster.machines
            ends[machine] = deaths[machine].finish(float(ends[machine]), effort * slowness[machine])
    return Outcome(float(ends.max()), float(np.median(ends)), sum(each.lost for each in deaths))


class _Deaths:
    """The deaths of one machine, drawn as they are reached."""

    def __init__(self, rng: np.random.Generator, cluster: Cluster) -> None:
        self._rng, self._cluster = rng, cluster
        self._next = self._draw(0.0)
        self.lost = 0

    def finish(self, start_s: float, effort_s: float) -> float:
        """When a shard that begins at `start_s` is on disk, after as many deaths as fall into it."""
        while start_s + effort_s > self._next:
            start_s = max(start_s, self._next) + self._cluster.restart_s
            self._next = self._draw(start_s)
            self.lost += 1
        return start_s + effort_s

    def _draw(self, now_s: float) -> float:
        mean = self._cluster.mtbf_s
        return now_s + (float(self._rng.exponential(mean)) if np.isfinite(mean) else np.inf)


def _log_normal(rng: np.random.Generator, cv: float, size: int) -> Floats:
    """Log-normal draws of mean 1 and coefficient of variation `cv`."""
    sigma = float(np.sqrt(np.log1p(cv**2)))
    return np.exp(sigma * rng.standard_normal(size) - sigma**2 / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=float, default=1e8)
    parser.add_argument("--machines", type=int, default=100)
    parser.add_argument("--clips-per-s", type=float, default=100.0, help="of one machine; measure: extract.py")
    parser.add_argument("--clip-cv", type=float, default=1.0, help="how much clips differ")
    parser.add_argument("--machine-cv", type=float, default=0.2, help="how much machines differ")
    parser.add_argument("--mtbf-h", type=float, default=24.0, help="hours between deaths of one machine")
    parser.add_argument("--restart", type=float, default=300.0, help="seconds a dead machine is away")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(
        f"{options.clips:,.0f} clips, {options.machines} machines at {options.clips_per_s:g} clips/s, "
        f"a death a machine every {options.mtbf_h:g} h, {options.seeds} seeds"
    )
    print(f"{'clips a shard':>13}  {'division':>9}  {'fixed shares':>16}  {'a queue':>16}  {'shards lost':>11}")
    for shard in (64, 1024, 16384):
        cluster = Cluster(
            int(options.clips),
            options.machines,
            options.clips_per_s,
            shard,
            options.clip_cv,
            options.machine_cv,
            options.mtbf_h * 3600,
            options.restart,
        )
        ideal = ideal_s(cluster)
        cells, lost = [], []
        for queue in (False, True):
            outcomes = [simulate(cluster, queue=queue, seed=seed) for seed in range(options.seeds)]
            hours = np.mean([each.total_s for each in outcomes]) / 3600
            cells.append(f"{hours:8.2f} h {100 * ideal / 3600 / hours:3.0f} %")
            lost.append(np.mean([each.lost_shards for each in outcomes]))
        print(f"{shard:13,}  {ideal / 3600:7.2f} h  {cells[0]:>16}  {cells[1]:>16}  {lost[1]:11.1f}")
    print("% is the division's time over the simulated one: how much of the machines was used.")


if __name__ == "__main__":
    main()
