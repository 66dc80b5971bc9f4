"""The generator as ONNX models, for use without PyTorch; arithmetic is float32, N is free.

`write`, one model. Inputs: `z` `[N, z_dim]`, `c` `[N, c_dim]` where there are labels,
`truncation_psi` `[]`. Output: `img` `[N, channels, R, R]`, about [-1, 1].

`write_parts`, two models, for what is done to `w` between them. Mapping: `z`, and `c` where there
are labels, to `w` `[N, w_dim]`. Synthesis: `ws` `[N, num_ws, w_dim]` to `img`.

Noise is the fixed one in all of them (`noise_mode="const"`).
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_fewshot.files import replacing

OPSET = 18
TOLERANCE = 1e-4  # largest difference of a value from PyTorch's

Inputs = Callable[[Any, int], dict[str, Tensor]]  # from G and N to a model's inputs by name


class _Part(nn.Module):
    def __init__(self, G: Any) -> None:
        super().__init__()
        self.G = G


class _Mapping(_Part):
    """From z to w, before truncation."""

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        w: Tensor = self.G.mapping(z, c)[:, 0]
        return w


class _Synthesis(_Part):
    """From ws to images."""

    def forward(self, ws: Tensor) -> Tensor:
        img: Tensor = self.G.synthesis(ws, noise_mode="const", force_fp32=True, fused_modconv=False)
        return img


class _Sampler(_Part):
    """G with truncation as a tensor, so that it can be an input of the model."""

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
    return _write(path, _Sampler(G.cpu().eval()), "img", _sampling)


def write_parts(
    mapping: str | os.PathLike[str], synthesis: str | os.PathLike[str], G: nn.Module
) -> float:
    """Write mapping and synthesis as two models; return the larger of their differences.

    Raises:
        ValueError: As `write`.
    """
    G = G.cpu().eval()
    first = _write(mapping, _Mapping(G), "w", _latents)
    return max(first, _write(synthesis, _Synthesis(G), "img", _styles))


def _write(path: str | os.PathLike[str], part: _Part, output: str, inputs: Inputs) -> float:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"ONNX needs the package {error.name}: pip install onnx onnxscript onnxruntime"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        _export(part, model, inputs(part.G, 2), output)
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        difference = max(_difference(session, part, inputs(part.G, n)) for n in (1, 3))
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path}: the model's {output} is off by {difference:.1e}; not written"
            )
        with replacing(path) as file:
            file.write(model.read_bytes())
    return difference


def _latents(G: Any, count: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(count)
    inputs = {"z": torch.randn(count, G.z_dim, generator=rng)}
    if G.c_dim:
        inputs["c"] = torch.eye(G.c_dim)[torch.arange(count) % G.c_dim]
    return inputs


def _sampling(G: Any, count: int) -> dict[str, Tensor]:
    inputs = _latents(G, count)
    return {"z": inputs.pop("z"), "truncation_psi": torch.tensor(0.7), **inputs}


@torch.no_grad()
def _styles(G: Any, count: int) -> dict[str, Tensor]:
    return {"ws": G.mapping(**{"c": None, **_latents(G, count)})}


def _export(part: _Part, path: Path, inputs: dict[str, Tensor], output: str) -> None:
    batch = torch.export.Dim("N")
    shapes = {name: {0: batch} if value.ndim else {} for name, value in inputs.items()}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # names packages nobody needs here
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            part,
            kwargs=inputs,
            f=path,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=shapes,
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def _difference(session: Any, part: _Part, inputs: dict[str, Tensor]) -> float:
    (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        difference: Tensor = torch.from_numpy(output) - part(**inputs)
    return difference.abs().max().item()
