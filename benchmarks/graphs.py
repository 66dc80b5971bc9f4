"""Training with CUDA graphs beside training without: pace, memory, and whether losses are equal.

    python -m benchmarks.graphs 128 --outdir=out --data=ten.zip --resume=source.pkl ...

The number is that of iterations; options are those of train.py. Three trainings start alike in one
process: twice without graphs, whose difference is the kernels' own noise, then with them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

SLACK = 10  # times the noise between two trainings without graphs, by which losses may differ
ROUNDING = 1e-3  # the same where these are equal
Means = dict[str, float]


def main(words: list[str]) -> int:
    """Print what each training comes to; return 1 where graphs change the losses."""
    import train

    iterations, options = int(words[0]), words[1:]
    values: dict[str, Any] = dict(train.main.make_context("train.py", options).params)
    for word in ("outdir", "dry_run", "estimate", "fresh", "report"):
        values.pop(word)
    means = []
    for name, graphs in (("without", "off"), ("without, again", "off"), ("with graphs", "auto")):
        pace, peak, found = measure({**values, "graphs": graphs}, iterations)
        means.append(found)
        print(f"{name:16}{pace:8.2f} s/kimg, peak {peak:.2f} GiB", flush=True)
    noise, change = (difference(means[0], other) for other in means[1:])
    print(f"means of losses differ by {change:.2g} with graphs, by {noise:.2g} without")
    return int(change > SLACK * noise + ROUNDING)


def measure(values: Mapping[str, Any], iterations: int) -> tuple[float, float, Means]:
    """Return seconds per kimg of the second half, the peak in GiB, and the means of statistics."""
    from stylegan2_fewshot import distributed, stats
    from stylegan2_fewshot.ops import select
    from training import construction, graphs, resolve
    from training.dataset import IN_MEMORY_BYTES
    from training.phases import Phases, batches, now
    from training.state import construct

    found = resolve.resolve(values)
    device = distributed.init(found.options["device"])
    select(found.options["ops"], device)
    construction.set_up_torch(found.options)
    found.dataset.keep_decoded(IN_MEMORY_BYTES)
    state, _ = construct(found.options, found.dataset, device)
    captured = graphs.of(found.options, state, device, print)
    phases = Phases(found.options, state, device, captured)
    stats.restore([])
    distributed.forget_peak(device)
    start, half = 0.0, iterations // 2
    for number, (images, labels) in enumerate(batches(found.options, state.dataset, 0, device), 1):
        phases.iterate(images, labels)
        if number == half:  # by then every phase was due twice, and has its graph
            start = now(device)
        if number == iterations:
            break
    pace = (now(device) - start) * 1000 / ((iterations - half) * found.options["batch_size"])
    means = {name: moments.mean for name, moments in stats.collect().items()}
    return pace, distributed.memory_gb(device), means


def difference(one: Means, other: Means) -> float:
    """Return the largest relative difference of two sets of means; infinity where names differ."""
    if one.keys() != other.keys():
        return float("inf")
    sizes = {name: max(abs(one[name]), abs(other[name]), 1e-9) for name in one}
    return max(abs(one[name] - other[name]) / size for name, size in sizes.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
