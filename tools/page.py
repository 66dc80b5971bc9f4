"""A static page that runs networks in the browser: their ONNX models and ONNX Runtime Web."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from stylegan2_fewshot.files import replacing, sha256_of, write_text
from stylegan2_fewshot.networks import refuse_made
from training import conditions, pickles, sources
from training.directions import sefa
from training.formats import onnx_export

from . import npm
from .choices import plugin_option
from .command import FOLDER, UserPath, command

SOURCES = Path(__file__).with_name("page_files")
STYLE = Path(__file__).with_name("style.css")
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# Names in the package's dist/, and on the page: not every server knows what an .mjs is.
RUNTIME = {
    "module": ("ort.wasm.min.mjs", "runtime/ort.js"),
    "glue": ("ort-wasm-simd-threaded.mjs", "runtime/ort-glue.js"),
    "wasm": ("ort-wasm-simd-threaded.wasm", "runtime/ort.wasm"),
}
MOST_CONDITIONS = 32
SPREAD = 3  # standard deviations of w that a direction's slider covers to either side


@command()
@click.argument("networks", nargs=-1, required=True)
@click.argument("out", type=FOLDER)
@click.option("--names", help="Names of the networks, as source,EWC.  [default: their files']")
@click.option("--title", help="Title of the page.  [default: the names]")
@click.option("--classes", help="Names of the classes, as cat,dog.  [default: their numbers]")
@click.option(
    "--directions",
    type=click.IntRange(min=0),
    default=6,
    help="How many SeFa directions of the first network get a slider.",
    show_default=True,
)
@click.option(
    "--runtime",
    type=UserPath(exists=True, file_okay=False, path_type=Path),
    help="Folder with the files of onnxruntime-web's dist/.  [default: fetched by npm]",
)
@plugin_option
def main(
    networks: tuple[str, ...],
    out: Path,
    names: str | None,
    title: str | None,
    classes: str | None,
    directions: int,
    runtime: Path | None,
) -> None:
    """Make a static page that runs networks in the browser, side by side at the same seeds.

    \b
    Any web server can carry OUT, and this one is at hand:
      python -m tools.page source.pkl adapted.pkl page/ --names=source,adapted
      python -m http.server --directory=page
    """
    labels = names.split(",") if names else [_name(network) for network in networks]
    if len(labels) != len(networks):
        raise ValueError(f"--names={names}: must be {len(networks)}, one for each network")
    files = _runtime(runtime)
    generators = [_generator(network) for network in networks]
    _check_alike(networks, generators)
    choices, label, vectors = _choices(networks, generators, classes)
    out.mkdir(parents=True, exist_ok=True)
    (out / "networks.json").unlink(missing_ok=True)  # the page is whole once this is there again
    copied = _copy(files, out)
    described = [
        _write_network(G, name, vectors if G.c_dim else None, out / "models")
        for G, name in zip(generators, labels, strict=True)
    ]
    _drop_others(out / "models", described)
    size = _size(described, copied)
    description = {
        "title": title or " | ".join(labels),
        "networks": described,
        "runtime": copied,
        "choices": choices,
        "choice_label": label,
        **_directions(generators[0], vectors, directions),
        "size": size,
        "about": f"{size}: networks and ONNX Runtime Web{_version(files['module'])}, which is "
        "under the MIT licence. Seeds are those of generate.py.",
    }
    write_text(out / "networks.json", json.dumps(description))
    click.echo(f"{out}: {size}. Look at it with: python -m http.server --directory={out}")


def _name(network: str) -> str:
    """Return a network's name, with its run's where it is a snapshot."""
    path = Path(sources.newest_network(network))
    snapshot = re.fullmatch(r"network-(snapshot-0*(\d+)|best)", path.stem)
    if not snapshot:
        return path.stem
    return f"{path.resolve().parent.name}, {f'{snapshot[2]} kimg' if snapshot[2] else 'best'}"


def _runtime(folder: Path | None) -> dict[str, Path]:
    """Return the files of ONNX Runtime Web by what they are on the page."""
    if folder is None:
        try:
            folder = npm.fetch(PACKAGE, VERSION, [f"dist/{name}" for name, _ in RUNTIME.values()])
        except npm.NpmError as error:
            wanted = f"{PACKAGE} {VERSION}'s dist/"
            raise ValueError(f"{error}; or give --runtime=FOLDER with {wanted}") from error
        folder = folder / "dist"
    for name, _ in RUNTIME.values():
        if not (folder / name).is_file():
            raise ValueError(f"--runtime={folder}: has no {name}; give {PACKAGE}'s dist/")
    return {kind: folder / name for kind, (name, _) in RUNTIME.items()}


def _generator(network: str) -> Any:
    G = pickles.load(network, needs=("G_ema",)).G_ema
    refuse_made(G, f"{network}: the page")
    return G


def _check_alike(networks: Sequence[str], generators: Sequence[Any]) -> None:
    """Refuse networks that cannot have the same latents."""
    first = generators[0]
    for network, G in zip(networks, generators, strict=True):
        for what in ("z_dim", "w_dim"):
            size, needed = getattr(G, what), getattr(first, what)
            if size != needed:
                raise ValueError(
                    f"{network}: its {what} is {size}, that of {networks[0]} is {needed}; "
                    "make a page for each"
                )


def _choices(
    networks: Sequence[str], generators: Sequence[Any], classes: str | None
) -> tuple[list[str], str, Tensor | None]:
    """Return names of classes or conditions, what they are, and their vectors `[M, c_dim]`."""
    conditional = [(n, G) for n, G in zip(networks, generators, strict=True) if G.c_dim]
    if not conditional:
        if classes:
            raise ValueError(f"--classes={classes}: the network has no classes; drop --classes")
        return [], "", None
    found = [(conditions.beside(n, G.c_dim), G.c_dim) for n, G in conditional]
    kept, c_dim = found[0]
    if any(dim != c_dim or (other is None) != (kept is None) for other, dim in found):
        raise ValueError("networks have different classes or conditions; make a page for each")
    vectors = torch.eye(c_dim) if kept is None else kept[1][:MOST_CONDITIONS]
    kind = "Class" if kept is None else "Image"
    names = classes.split(",") if classes else [f"{kind} {i}" for i in range(len(vectors))]
    if len(names) != len(vectors):
        raise ValueError(f"--classes={classes}: must be {len(vectors)} names, got {len(names)}")
    return names, kind if kept is None else "Condition: training image", vectors


def _copy(runtime: dict[str, Path], out: Path) -> dict[str, Any]:
    """Copy our files and the runtime's; return what the page needs to know of the latter."""
    ours = [STYLE, *(path for path in SOURCES.iterdir() if path.is_file())]
    targets = {out / path.name: path for path in ours}
    targets |= {out / RUNTIME[kind][1]: path for kind, path in runtime.items()}
    for target, path in targets.items():
        with replacing(target) as file:
            file.write(path.read_bytes())
    described: dict[str, Any] = {kind: RUNTIME[kind][1] for kind in RUNTIME}
    return {**described, "wasm": _file(out / described["wasm"], out)}


def _write_network(G: Any, name: str, vectors: Tensor | None, folder: Path) -> dict[str, Any]:
    """Write a network's two models, named by their content; return what the page is told."""
    paths = {kind: folder / f"{kind}.onnx" for kind in ("mapping", "synthesis")}
    click.echo(f"{name}: exporting", err=True)
    onnx_export.write_parts(paths["mapping"], paths["synthesis"], G)
    named = {}
    for kind, path in paths.items():  # a browser's cache knows a file by its name
        target = path.with_name(f"{kind}-{sha256_of(path)[:12]}.onnx")
        named[kind] = _file(path.replace(target), folder.parent)
    mean = getattr(G.mapping, "w_avg", torch.zeros(G.w_dim))
    return {
        "name": name,
        **named,
        **{key: getattr(G, key) for key in ("z_dim", "c_dim", "w_dim", "num_ws")},
        "resolution": G.img_resolution,
        "channels": G.img_channels,
        "w_avg": _base64(mean),
        "choices": _base64(torch.zeros(0) if vectors is None else vectors),
    }


def _drop_others(folder: Path, described: Sequence[dict[str, Any]]) -> None:
    """Delete the models of an earlier page."""
    current = {Path(d[kind]["file"]).name for d in described for kind in ("mapping", "synthesis")}
    for path in folder.glob("*.onnx"):
        is_ours = re.fullmatch(r"(mapping|synthesis)-[0-9a-f]{12}\.onnx", path.name)
        if is_ours and path.name not in current:
            path.unlink()


@torch.no_grad()
def _directions(G: Any, vectors: Tensor | None, count: int) -> dict[str, str]:
    """Return SeFa directions `[K, w_dim]` and how far their sliders go."""
    rows = sefa(G)[:count]
    z = torch.randn(1000, G.z_dim, generator=torch.Generator().manual_seed(0))
    c = vectors[torch.arange(len(z)) % len(vectors)] if vectors is not None and G.c_dim else None
    along = G.mapping(z, c)[:, 0] @ rows.T
    ranges = (SPREAD * along.std(0)).mul(10).ceil().clamp(min=1) / 10
    return {"directions": _base64(rows), "ranges": _base64(ranges)}


def _file(path: Path, root: Path) -> dict[str, Any]:
    return {"file": path.relative_to(root).as_posix(), "bytes": path.stat().st_size}


def _size(described: Sequence[dict[str, Any]], runtime: dict[str, Any]) -> str:
    files = [runtime["wasm"], *(d[kind] for d in described for kind in ("mapping", "synthesis"))]
    return f"{sum({f['file']: f['bytes'] for f in files}.values()) / 1e6:.1f} MB"


def _version(module: Path) -> str:
    match = re.search(rb"ONNX Runtime Web v([\w.-]+)", module.read_bytes()[:500])
    return f" {match[1].decode()}" if match else ""


def _base64(values: Tensor) -> str:
    """Return float32 values, little-endian, as the page's `decode` takes them."""
    return base64.b64encode(values.detach().numpy().astype("<f4").tobytes()).decode()


if __name__ == "__main__":
    main()
