"""Commands for before and after training: one per file, `python -m tools.NAME`.

A command's `main` is made with `tools.command.command`; the first line of its docstring is what
`python -m tools` says about it.
"""

import os

# Read when PyTorch is loaded, so here. OpenMP's threads spin while they wait for one another; where
# something else wants the processor, each wait then lasts until the spinning thread loses it.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
