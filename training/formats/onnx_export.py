"""The generator as an ONNX model, for use without PyTorch.

Inputs: `z` `[N, z_dim]`, `c` `[N, c_dim]` where there are labels, `truncation_psi` `[]`. Output:
`img` `[N, channels, R, R]`, about [-1, 1]. N is free, arithmetic is float32, and noise is the fixed
one (`noise_mode="const"`).
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_fewshot.files import replacing

OPSET = 18
TOLERANCE = 1e-4  # largest difference of a pixel from PyTorch's


class _Sampler(nn.Module):
    """G with truncation as a tensor, so that it can be an input of the model."""

    def __init__(self, G: nn.Module) -> None:
        super().__init__()
        self.G = G

    def forward(self, z: Tensor, truncation_psi: Tensor, c: Tensor | None = None) -> Tensor:
        ws = self.G.mapping(z, c)
        if hasattr(self.G.mapping, "w_avg"):
            mean = self.G.mapping.w_avg
            ws = mean + (ws - mean) * truncation_psi
        img: Tensor = self.G.synthesis(ws, noise_mode="const", force_fp32=True, fused_modconv=False)
        return img


def write(path: str | os.PathLike[str], G: nn.Module) -> float:
    """Write a generator, and run it: return its largest difference from PyTorch's images.

    Raises:
        ValueError: A package is missing, or the model's images differ by more than `TOLERANCE`.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"ONNX needs the package {error.name}: pip install onnx onnxscript onnxruntime"
        ) from None
    sampler = _Sampler(G.cpu().eval())
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        _export(sampler, model)
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        difference = max(_difference(session, sampler, count) for count in (1, 3))
        if not difference <= TOLERANCE:
            raise ValueError(f"{path}: the model's images are off by {difference:.1e}; not written")
        with replacing(path) as file:
            file.write(model.read_bytes())
    return difference


def _inputs(G: Any, count: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(count)
    inputs = {"z": torch.randn(count, G.z_dim, generator=rng), "truncation_psi": torch.tensor(0.7)}
    if G.c_dim:
        inputs["c"] = torch.eye(G.c_dim)[torch.arange(count) % G.c_dim]
    return inputs


def _export(sampler: _Sampler, path: Path) -> None:
    inputs = _inputs(sampler.G, 2)
    batch = torch.export.Dim("N")
    shapes = {name: {0: batch} if value.ndim else {} for name, value in inputs.items()}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # names packages nobody needs here
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            sampler,
            kwargs=inputs,
            f=path,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["img"],
            dynamic_shapes=shapes,
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def _difference(session: Any, sampler: _Sampler, count: int) -> float:
    inputs = _inputs(sampler.G, count)
    (theirs,) = session.run(["img"], {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        return (torch.from_numpy(theirs) - sampler(**inputs)).abs().max().item()
