"""Runs the projector of an unmodified checkout of the original on the CPU, with LPIPS of ours.

    python tests/original_projector.py CHECKOUT NETWORK LPIPS.pt TARGET.npz STEPS OUT.npz

The checkout comes first among the modules' places, so this runs in a process of its own. Its
projector asks for NVIDIA's network by URL and loads it with TorchScript; both calls are answered
with ours. TARGET.npz has the image `target`, uint8 `[3, R, R]`; OUT.npz gets `w` and `cpu_sec`.
"""

from __future__ import annotations

import io
import sys
import time
import types
from typing import Any


def main(checkout: str, network: str, lpips: str, target: str, steps: str, out: str) -> None:
    sys.path.insert(0, checkout)
    sys.modules["imageio"] = types.ModuleType("imageio")  # for videos alone
    import dnnlib
    import legacy
    import numpy as np
    import projector
    import torch

    torch.set_num_threads(1)
    embed = torch.jit.load(lpips).eval()

    class Answer:
        def eval(self) -> Answer:
            return self

        def to(self, device: Any) -> Answer:
            return self

        def __call__(self, images: Any, resize_images: bool, return_lpips: bool) -> Any:
            return embed(images)

    dnnlib.util.open_url = lambda url: io.BytesIO()
    torch.jit.load = lambda stream: Answer()
    with open(network, "rb") as stream:
        G = legacy.load_network_pkl(stream)["G_ema"].requires_grad_(False)
    image = torch.from_numpy(np.load(target)["target"])
    torch.manual_seed(303)  # the projector's default
    start = time.process_time()
    ws = projector.project(G, image, num_steps=int(steps), device=torch.device("cpu"))
    np.savez(out, w=ws[-1:].numpy(), cpu_sec=time.process_time() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
