"""Speed and memory, alone or side by side with a checkout of the original: `python -m benchmarks`."""
