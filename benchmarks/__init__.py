"""Speed and memory, alone or in turn with a checkout of the original: `python -m benchmarks`."""
