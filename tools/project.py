"""Finds the latents of photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from .choices import Drawing, drawing_options, network_option, outdir_option
from .command import UserPath, command
from .output import Output, progress, say

LPIPS = "lpips-vgg16"
VIDEO_FPS = 10
KIND = "projection"


@dataclass(frozen=True)
class Target:
    """An image to find, as uint8 `[C, R, R]`, its condition `[1, c_dim]`, and its file."""

    path: Path
    pixels: Any
    c: Any

    @property
    def name(self) -> str:
        return self.path.stem


@command()
@click.argument("images", nargs=-1, type=UserPath(path_type=Path))
@click.option(
    "--target", "targets", multiple=True, type=UserPath(path_type=Path), help="Also an image."
)
@network_option
@click.option(
    "--space",
    type=click.Choice(["w", "w+"]),
    default="w",
    show_default=True,
    help="One vector for all layers, or one for each: nearer to the image, harder to edit.",
)
@click.option(
    "--num-steps",
    "--steps",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Steps of the search.",
)
@click.option(
    "--noise",
    type=click.Choice(["free", "own"]),
    help="Let noise maps follow the image during the search, as the original does, or keep the "
    "network's own.  [default: free in w, own in w+]",
)
@click.option("--seed", type=int, default=303, show_default=True, help="Seed of the search.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Images searched for at a time; the result does not depend on it but for rounding.",
)
@click.option(
    "--tune-g",
    is_flag=True,
    help="Then tune G so that it makes the images at the latents found, as OUTDIR/tuned.pkl.",
)
@click.option(
    "--tune-steps",
    type=click.IntRange(min=1),
    default=350,
    show_default=True,
    help="Steps of the tuning.",
)
@click.option(
    "--save-video", type=bool, default=False, show_default=True, help="Also write NAME.mp4."
)
@drawing_options("class_idx", "backbone", "route")
@outdir_option
def main(
    images: tuple[Path, ...],
    targets: tuple[Path, ...],
    network: str,
    outdir: Path,
    save_video: bool,
    tune_g: bool,
    tune_steps: int,
    batch: int,
    **options: Any,
) -> None:
    """Find the latents w whose images look like photos, as NAME.npz for generate.py --projected-w.

    This was projector.py: Karras et al., CVPR 2020 (arXiv 1912.04958), appendix D. The same command
    skips images that are done. NAME.png shows target and projection. Photos have to be square;
    python -m tools.prepare makes them so. --tune-g is pivotal tuning: Roich et al., TOG 2022.
    """
    if not (paths := [*images, *targets]):
        raise ValueError("give at least one image")
    names = [path.stem for path in paths]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{min(twice)}: two images of one name; rename one")
    if save_video:
        from . import video

        video.check(Path("x.mp4"))
    drawing = Drawing.take(options)
    subject = _Opened(network, drawing)
    found = [subject.target(path) for path in paths]
    settings = _settings(options)
    ws: dict[str, Any] = {}
    with Output(outdir) as output:
        todo = [t for t in found if not subject.is_done(outdir, t, settings, ws)]
        for index in range(0, len(todo), batch):
            part = todo[index : index + batch]
            ws |= _search(subject, part, settings, output, save_video, last=len(todo) - index)
        if tune_g:
            _tune(subject, found, [ws[t.name] for t in found], tune_steps, output)


def _settings(options: dict[str, Any]) -> Any:
    from training.projection import Settings

    noise = options["noise"] or ("free" if options["space"] == "w" else "own")
    chosen = dict(space=options["space"], steps=options["num_steps"], seed=options["seed"])
    return Settings(**chosen, free_noise=noise == "free")


class _Opened:
    """A network, and LPIPS, ready to search."""

    def __init__(self, network: str, drawing: Drawing) -> None:
        from metrics import detectors
        from stylegan2_fewshot.files import sha256_of
        from training import generation, sources

        self.drawing = drawing
        self.network = network
        self.subject = generation.Subject(network, drawing, say=say, from_seeds=False)
        self.hash = sha256_of(sources.fetch(network))
        self._lpips = detectors.load(LPIPS)

    @property
    def G(self) -> Any:
        return self.subject.G

    @property
    def embed(self) -> Any:
        return self._lpips.network

    @property
    def synthesis(self) -> dict[str, Any]:
        chosen: dict[str, Any] = self.subject.chosen
        return chosen

    def target(self, path: Path) -> Target:
        """Read an image, and what the network is conditioned on for it."""
        pixels = _pixels(path, self.G.img_resolution, self.G.img_channels)
        return Target(path, pixels, self.subject.label_of(path))

    def meta(self, target: Target, settings: Any) -> dict[str, Any]:
        import hashlib

        pixels = hashlib.sha256(target.pixels.numpy().tobytes()).hexdigest()
        chosen = {"class": self.drawing.class_idx, **self.drawing.methods}
        return {"network": self.hash, "image": pixels, **vars(settings), **chosen}

    def is_done(self, outdir: Path, target: Target, settings: Any, ws: dict[str, Any]) -> bool:
        """Return whether the same search was done before; its latents go to `ws` then."""
        from stylegan2_fewshot import tensor_file

        path = outdir / f"{target.name}.npz"
        if not path.is_file():
            return False
        try:
            tensors, meta = tensor_file.read(path, KIND, "")
        except ValueError:
            return False
        wanted = self.meta(target, settings)
        if any(meta.get(key) != value for key, value in wanted.items()):
            return False
        ws[target.name] = tensors["w"]
        click.echo(f"{path}: done before")
        return True


def _pixels(path: Path, resolution: int, channels: int) -> Any:
    import torch

    from training import images

    image = images.rgba(path)
    if image.width != image.height:
        raise ValueError(
            f"{path}: is {image.width}x{image.height}, not square; cut it out first, with: "
            f"python -m tools.prepare FOLDER OUT.zip --size={resolution}"
        )
    return torch.from_numpy(images.pixels(image, resolution, channels))


def _search(
    opened: _Opened, part: Sequence[Target], settings: Any, output: Output, video: bool, last: int
) -> dict[str, Any]:
    """Search for a batch of images, and write what was found."""
    import torch

    from stylegan2_fewshot import tensor_file
    from training.projection import Projection

    targets, c = torch.stack([t.pixels for t in part]), torch.cat([t.c for t in part])
    search = Projection(opened.G, targets, c, opened.embed, settings, opened.synthesis)
    each = search.sec_per_step() * settings.steps / len(part)
    images = "1 image" if last == 1 else f"{last} images"
    where = opened.subject.device
    click.echo(f"{images} to go, about {each:.0f} s each on the {where.type}", err=True)
    first, way = _distances(opened, search), []
    bar = progress(search.run(), total=settings.steps, desc="steps", unit="step")
    for distance in bar:
        if hasattr(bar, "set_postfix"):
            bar.set_postfix(lpips=f"{float(distance.mean()):.3f}", refresh=False)
        if video:
            way.append(search.latents().cpu())
    final, ws = _distances(opened, search), search.latents().cpu()
    with torch.no_grad():
        made = opened.G.synthesis(ws.to(opened.subject.device), **_const(opened))
    for index, target in enumerate(part):
        name = target.name
        _write_sheet(output, target, made[index : index + 1], float(final[index]))
        if video:
            _write_video(opened, output, target, [w[index : index + 1] for w in way])
        path = output.place / f"{name}.npz"  # last: it says that the image is done
        tensor_file.write(path, {"w": ws[index : index + 1]}, opened.meta(target, settings))
        output.count += 1
        click.echo(f"{name}: LPIPS {first[index]:.4f} at the start, {final[index]:.4f} at the end")
    return {target.name: ws[index : index + 1] for index, target in enumerate(part)}


def _const(opened: _Opened) -> dict[str, Any]:
    return {"noise_mode": "const", **opened.synthesis}


def _distances(opened: _Opened, search: Any) -> Any:
    """Return LPIPS of images as generate.py makes them: with the network's noise, and clipped.

    The targets were clipped too: the search's own distances stay above 0 even at the right w.
    """
    import torch

    from training.projection import distances

    with torch.no_grad():
        images = opened.G.synthesis(search.latents(), **_const(opened)).clamp(-1, 1)
        return distances(opened.embed, images, search.wanted)


def _write_sheet(output: Output, target: Target, image: Any, lpips: float) -> None:
    import torch

    from stylegan2_fewshot.pixels import to_float
    from training import grids

    wanted = to_float(target.pixels[None])
    row = torch.cat([wanted, image.cpu()])
    output.picture(f"{target.name}.png", grids.labelled_rows([(f"LPIPS {lpips:.3f}", row)]))


def _write_video(opened: _Opened, output: Output, target: Target, way: list[Any]) -> None:
    from . import video

    video.save(output.place / f"{target.name}.mp4", _way(opened, target, way), VIDEO_FPS)
    output.count += 1


def _way(opened: _Opened, target: Target, way: list[Any]) -> Iterator[Any]:
    import torch

    from stylegan2_fewshot.pixels import to_float
    from training import grids

    wanted = to_float(target.pixels[None])
    for w in way:
        with torch.no_grad():
            image = opened.G.synthesis(w.to(opened.subject.device), **_const(opened))
        yield grids.grid(torch.cat([wanted, image.cpu()]), columns=2)


def _tune(
    opened: _Opened, found: Sequence[Target], ws: Sequence[Any], steps: int, output: Output
) -> None:
    """Tune G around all projections, and write it as an ordinary network pickle."""
    import torch

    from training.projection import tuned

    bar = progress(range(steps), total=steps, desc="tuning", unit="step")
    ticks = iter(bar)
    G = tuned(
        opened.G,
        torch.cat(list(ws)),
        torch.stack([t.pixels for t in found]),
        opened.embed,
        steps=steps,
        synthesis=opened.synthesis,
        on_step=lambda loss: next(ticks, None),
    ).cpu()
    nets = replace(opened.subject.nets, G=G, G_ema=G)
    output.network(output.place / "tuned.pkl", nets, opened.network)


if __name__ == "__main__":
    main()
