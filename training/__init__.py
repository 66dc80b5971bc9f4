"""The training codebase around the library: networks, pickles, data set, checkpoints, loop."""
