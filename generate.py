"""Generate images with a trained network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = 8  # images per row of the labelled grids


class UserError(click.ClickException):
    """What the user can put right: one line, exit status 2."""

    exit_code = 2


class Command(click.Command):
    """A command whose user's mistakes, and the disk's, end in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error


def parse_seeds(context: click.Context, option: click.Parameter, text: str | None) -> list[int]:
    """Turn `0-3,40` into `[0, 1, 2, 3, 40]`; nothing given is an empty list."""
    seeds: list[int] = []
    for part in text.split(",") if text is not None else ():
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2**32:
            raise UserError(
                f"--seeds={text}: {part!r} is no seed; write numbers and ranges such as 0-35,40"
            )
        seeds.extend(range(first, last + 1))
    return seeds


def load_generator(network: str) -> Any:
    """Load the averaged generator of a network pickle onto the GPU, or the CPU without one."""
    from stylegan2_fewshot import distributed
    from stylegan2_fewshot.ops import select
    from training import pickles

    try:
        device = distributed.init()
        select("auto", device)
        return pickles.load(network).G_ema.to(device)
    except (ValueError, OSError) as error:
        raise UserError(f"--network: {error}") from error


def label_for(G: Any, network: str, class_idx: int | None) -> Callable[[int], Tensor]:
    """Return what gives every seed the one-hot label `[1, c_dim]` of a class, or `[1, 0]`."""
    import torch

    from training import conditions

    if conditions.beside(network):
        raise UserError(
            f"--network={network}: takes what a backbone sees in an image instead of a class; "
            "give --prior-sample, --prior-image or --prior-mix"
        )
    if G.c_dim == 0 and class_idx is not None:
        raise UserError(f"--class={class_idx}: the network has no classes; leave it out")
    if G.c_dim > 0 and class_idx not in range(G.c_dim):
        given = "" if class_idx is None else f"={class_idx}"
        raise UserError(f"--class{given}: the network needs a class from 0 to {G.c_dim - 1}")
    c = torch.tensor([[float(index == class_idx) for index in range(G.c_dim)]])
    return lambda seed: c


def conditions_for(
    G: Any, network: str, sampling: str | None, images: list[str], **backbone: Any
) -> Callable[[int], Tensor]:
    """Return what gives each seed its conditions `[n, c_dim]`: one, or a strip between two."""
    from stylegan2_fewshot.plugin import seed_of
    from training import conditions

    try:
        instances = conditions.beside(network)
        if instances is None:
            raise UserError(f"--network={network}: no file .prior.npz beside it, so no --prior-...")
        if sampling:
            pool = conditions.pool(instances.vectors, sampling)
            return lambda seed: pool[seed_of("prior", seed) % len(pool)][None]
        c = conditions.of_images(images, instances, G, **backbone)
    except ValueError as error:
        option = "sample" if sampling else "mix" if len(images) > 1 else "image"
        raise UserError(f"--prior-{option}: {error}") from error
    return lambda seed: c if len(c) == 1 else conditions.between(*c, steps=COLUMNS)


def load_ws(G: Any, path: str) -> Tensor:
    """Read projected latents `[N, num_ws, w_dim]`, the array `w` of an .npz file."""
    import numpy as np
    import torch

    try:
        with open(path, "rb") as stream, np.load(stream) as arrays:
            ws = torch.from_numpy(arrays["w"]).float()
    except Exception as error:  # A ZIP and the arrays in it break in many ways.
        raise UserError(f"--projected-w={path}: no .npz file with an array w ({error})") from error
    if ws.ndim != 3 or ws.shape[1:] != (G.num_ws, G.w_dim):
        raise UserError(
            f"--projected-w={path}: w must be [N, {G.num_ws}, {G.w_dim}] for this network, "
            f"got {list(ws.shape)}"
        )
    return ws


def chosen_route(G: Any, text: str) -> dict[str, Any]:
    """Return what gives G the route that `--route=text` names; nothing if it follows from z."""
    from stylegan2_fewshot.methods.bank.filters import parse_route

    return {} if text == "random" else {"route": parse_route(text, G)}


def through_routes(
    G: Any, seeds: list[int], labels: Callable[[int], Tensor], **options: Any
) -> Iterator[tuple[str, Tensor]]:
    """Yield for every seed images `[COLUMNS, C, H, W]`, by the routes of the first seeds."""
    import torch

    from stylegan2_fewshot.methods.bank.filters import held

    routes = held(G, torch.cat([latent(G, seed) for seed in range(COLUMNS)]))
    for seed in seeds:
        z = latent(G, seed).expand(COLUMNS, -1)
        c = labels(seed)[:1].to(z.device).expand(COLUMNS, -1)
        yield f"seed {seed}", G(z, c, **{**options, **routes})


def latent(G: Any, seed: int) -> Tensor:
    """Return the latent `[1, z_dim]` of a seed."""
    import numpy as np
    import torch

    z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim))
    return z.to(next(G.parameters()).device, torch.float32)


def from_seeds(
    G: Any, seeds: list[int], labels: Callable[[int], Tensor], **options: Any
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and images `[n, C, H, W]` of each seed, one for each of its n labels.

    Random noise follows from the seed too.
    """
    import torch

    for seed in seeds:
        torch.manual_seed(seed)
        c = labels(seed).to(next(G.parameters()).device)
        z = latent(G, seed).expand(len(c), -1)
        yield f"seed{seed:04d}", G(z, c, **options)


def from_ws(G: Any, ws: Tensor, **options: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield name and image `[1, C, H, W]` of each of the latents `[N, num_ws, w_dim]`."""
    device = next(G.parameters()).device
    for index, w in enumerate(ws.to(device).split(1)):
        yield f"proj{index:02d}", G.synthesis(w, **options)


def rows_of(seeds: list[int], images: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Group images into rows, each labelled with its seeds."""
    import torch

    for start in range(0, len(seeds), COLUMNS):
        row = seeds[start : start + COLUMNS]
        is_range = row == list(range(row[0], row[0] + len(row))) and len(row) > 1
        label = f"{row[0]}-{row[-1]}" if is_range else ", ".join(map(str, row))
        yield label, torch.cat(images[start : start + COLUMNS])


@click.command(cls=Command, help=__doc__)
@click.option("--network", required=True, help="Network pickle: path, URL or short name")
@click.option("--seeds", callback=parse_seeds, help="Seeds, such as 0-35,40")
@click.option("--trunc", type=float, default=1, show_default=True, help="Truncation psi")
@click.option("--class", "class_idx", type=int, help="Class, for a network with classes")
@click.option(
    "--prior-sample",
    type=click.Choice(["train", "mixup", "kmeans", "gmm"]),
    help="Conditions of a network trained with --prior: those of training images, or near them",
)
@click.option("--prior-image", metavar="FILE", help="Condition on this image")
@click.option(
    "--prior-mix", metavar="A,B", help="A strip of images, from one's condition to another's"
)
@click.option(
    "--backbone",
    help="Where your copy of the backbone is, if the network's is not built in: a TorchScript file",
)
@click.option(
    "--trust-backbone",
    is_flag=True,
    help="Run --backbone. Such a file is a program: it can do whatever you can",
)
@click.option(
    "--backbone-sha256",
    metavar="HEX",
    multiple=True,
    help="Run --backbone if it has this SHA-256; checked before the file is looked into",
)
@click.option(
    "--noise-mode",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    show_default=True,
    help="Noise inputs of the network",
)
@click.option("--projected-w", metavar="FILE", help="Latents w in an .npz file, instead of seeds")
@click.option("--outdir", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--grid", is_flag=True, help="Also write all seeds into one labelled grid.png")
@click.option(
    "--route",
    default="random",
    show_default=True,
    help="Filter set of each bank, such as 3,1,4; mean; or random, which follows from the seed",
)
@click.option(
    "--routes-grid", is_flag=True, help="Also write routes.png: every seed through the same routes"
)
def main(
    network: str,
    seeds: list[int],
    trunc: float,
    class_idx: int | None,
    prior_sample: str | None,
    prior_image: str | None,
    prior_mix: str | None,
    backbone: str | None,
    trust_backbone: bool,
    backbone_sha256: tuple[str, ...],
    noise_mode: str,
    projected_w: str | None,
    outdir: Path,
    grid: bool,
    route: str,
    routes_grid: bool,
) -> None:
    """Write seedNNNN.png for every seed, or projNN.png for every projected latent."""
    if bool(seeds) == (projected_w is not None):
        raise UserError("give either --seeds or --projected-w")
    images = [prior_image] if prior_image else prior_mix.split(",") if prior_mix else []
    if prior_mix and len(images) != 2:
        raise UserError(f"--prior-mix={prior_mix}: name two images, as a.png,b.png")
    labels = (class_idx is not None, prior_sample, prior_image, prior_mix)
    if projected_w and (grid or routes_grid or any(labels)):
        raise UserError("--projected-w goes with none of --grid, --routes-grid, --class, --prior-")
    if sum(map(bool, labels)) > 1:
        raise UserError("give only one of --class, --prior-sample, --prior-image and --prior-mix")
    import torch

    from metrics import Trust
    from stylegan2_fewshot.methods.bank.filters import banks_of
    from training import grids

    G = load_generator(network)
    if routes_grid and not banks_of(G):
        raise UserError("--routes-grid: the network has no filter banks; leave it out")
    options = {"noise_mode": noise_mode, **chosen_route(G, route)}
    if projected_w:
        made = from_ws(G, load_ws(G, projected_w), **options)
    else:
        if prior_sample or images:
            trust = Trust(trust_backbone, backbone_sha256)
            options_of = {"backbone": backbone, "trust": trust}
            of_seed = conditions_for(G, network, prior_sample, images, **options_of)
        else:
            of_seed = label_for(G, network, class_idx)
        options = {"truncation_psi": trunc, **options}
        made = from_seeds(G, seeds, of_seed, **options)
    outdir.mkdir(parents=True, exist_ok=True)
    kept = []
    with torch.no_grad():
        for name, img in made:
            grids.save_png(outdir / f"{name}.png", grids.grid(img, columns=len(img)))
            kept += [img.cpu()] if grid else []
        if routes_grid:
            rows = list(through_routes(G, seeds, of_seed, **options))
            grids.save_png(outdir / "routes.png", grids.labelled_rows(rows))
    if grid:
        rows = zip(map(str, seeds), kept, strict=True) if prior_mix else rows_of(seeds, kept)
        grids.save_png(outdir / "grid.png", grids.labelled_rows(list(rows)))


if __name__ == "__main__":
    main()
