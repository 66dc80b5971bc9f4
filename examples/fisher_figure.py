"""The figure behind EWC: where is the Fisher information, and which layers change?

    python examples/fisher_figure.py                       # the DCGAN's part, then StyleGAN2's

As Li et al. (NeurIPS 2020, arXiv 2012.02780, section 3.1): a DCGAN of five layers learns one domain
and is then trained on many images of another. Beside its change stands that of a control, the same
network trained for as long on its own domain: Adam moves every weight, needed or not. The same is
read off the few-shot experiment's StyleGAN2. Convolution weights only.
"""

from __future__ import annotations

import functools
import itertools
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import few_shot
import make_data
import numpy as np
import tables
import torch
from experiment import DOCS, processor, remembered, rounded, save
from measures import real_images
from torch import Tensor, nn
from trials import ROOT, Trial, commit, cores, run, train

from stylegan2_fewshot.pixels import to_float
from training import pickles
from training.run_dir import snapshots

NAME = "fisher"
LATENT, BATCH, SAMPLES = 100, 64, 500
Layers = dict[str, float]


def generator(width: int, size: int) -> nn.Sequential:
    """Return the five transposed convolutions of DCGAN (Radford et al., ICLR 2016)."""
    channels = [LATENT, 8 * width, 4 * width, 2 * width, width, 3]
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
        geometry = (size // 16, 1, 0) if index == 0 else (4, 2, 1)
        layers.append(nn.ConvTranspose2d(inputs, outputs, *geometry, bias=False))
        layers += [nn.Tanh()] if outputs == 3 else [nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers)


def discriminator(width: int, size: int) -> nn.Sequential:
    """Return the generator's mirror image, which ends in a logit."""
    channels = [3, width, 2 * width, 4 * width, 8 * width]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(channels):
        layers.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False))
        layers += [] if inputs == 3 else [nn.BatchNorm2d(outputs)]
        layers.append(nn.LeakyReLU(0.2, True))
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, size // 16, bias=False), nn.Flatten(0))


def initialise(module: nn.Module) -> None:
    """Set weights as DCGAN does: normal, of deviation 0.02."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def adversarial(G: nn.Module, D: nn.Module, images: Tensor, steps: int, seed: int) -> None:
    """Train both in place, as DCGAN: Adam of 2e-4, beta1 0.5, non-saturating loss.

    Args:
        G: From latents `[N, 100, 1, 1]` to images.
        D: From images to logits `[N]`.
        images: uint8 `[N, 3, size, size]`.
        steps: Iterations of one step of D and one of G.
        seed: Seed of the images' order and of the latents.
    """
    rng = torch.Generator().manual_seed(seed)
    g_opt, d_opt = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (G, D))
    softplus = nn.functional.softplus
    for _ in range(steps):
        real = to_float(images[torch.randint(len(images), [BATCH], generator=rng)])
        fake = G(torch.randn(BATCH, LATENT, 1, 1, generator=rng))
        d_opt.zero_grad()
        (softplus(-D(real)).mean() + softplus(D(fake.detach())).mean()).backward()
        d_opt.step()
        g_opt.zero_grad()
        softplus(-D(fake)).mean().backward()
        g_opt.step()


def convolutions(net: nn.Module) -> dict[str, Tensor]:
    """Return a DCGAN's convolution weights by layer, from the latent to the image."""
    weights = [m.weight for m in net.children() if isinstance(m, nn.ConvTranspose2d)]
    return {f"layer {number}": weight for number, weight in enumerate(weights, 1)}


def fisher(G: nn.Module, D: nn.Module, seed: int) -> Layers:
    """Return by layer the mean Fisher information: of squared gradients of log D, per sample."""
    G, D = G.eval(), D.eval()
    weights = convolutions(G)
    sums = dict.fromkeys(weights, 0.0)
    for z in torch.randn(SAMPLES, 1, LATENT, 1, 1, generator=torch.Generator().manual_seed(seed)):
        loss = nn.functional.softplus(-D(G(z))).sum()
        grads = torch.autograd.grad(loss, list(weights.values()))
        for name, grad in zip(weights, grads, strict=True):
            sums[name] += float(grad.square().mean()) / SAMPLES
    return sums


def change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Layers:
    """Return by layer the root mean square of the change over that of the weights."""
    return {k: float((after[k].detach() - w).norm() / w.norm()) for k, w in before.items()}


def dcgan(seed: int, size: int, width: int, steps: tuple[int, int], target: str) -> dict[str, Any]:
    """Return what one seed's DCGAN says: Fisher information, change, and the control's change."""
    torch.manual_seed(seed)
    start = time.time()
    own = real_images(make_data.archive(make_data.SOURCE, "train", size), 20_000)
    other = real_images(make_data.archive(target, "heldout", size))
    G, D = (make(width, size).apply(initialise) for make in (generator, discriminator))
    adversarial(G, D, own, steps[0], seed)
    state = [{k: v.clone() for k, v in net.state_dict().items()} for net in (G, D)]
    before = {k: w.detach().clone() for k, w in convolutions(G).items()}
    found: dict[str, Any] = {"seed": seed, "fisher": rounded(fisher(G, D, seed))}
    for name, images in (("change", other), ("control", own[:5000])):
        for net, values in zip((G, D), state, strict=True):
            net.load_state_dict(values)
            net.train()
        adversarial(G, D, images, steps[1], seed + 1000)
        found[name] = rounded(change(before, convolutions(G)))
    return {**found, "seconds": round(time.time() - start), "commit": commit()}


CONVOLUTION = re.compile(r"synthesis\.b\d+\.conv\d\.weight")


def stylegan2(target: str, out: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the same of the few-shot experiment's fine-tuned networks, a row for each seed."""
    source = pickles.load(ROOT / few_shot.SOURCE).G_ema
    before = {k: p for k, p in source.named_parameters() if CONVOLUTION.fullmatch(k)}
    path, rows = out / "source.fisher.npz", []
    if not (ROOT / path).exists():
        command = f"-m tools.fisher {few_shot.SOURCE} --samples={SAMPLES} --out={path}"
        run(command, ROOT / out / "fisher.txt")
    with np.load(ROOT / path) as stored:
        values = {k: float(stored[f"G.{k}"].mean()) for k in before}
    few = Path("out/few-shot")
    for seed in range(5):
        options = few_shot.FewShot.methods["fine-tuning"]
        tuned = few_shot.EXPERIMENT.trial("fine-tuning", options, seed, settings)
        own = make_data.archive(make_data.SOURCE, "train")
        options = re.sub(r"--metrics=\S+", "--metrics=none", tuned.options)
        options = re.sub(r"--data=\S+", f"--data={own}", options)
        control = Trial("source's own data", options, seed, target)
        if not (done := tuned.finished(few)):
            continue
        ends = {"change": done, "control": train([control], few)[control]}
        rows.append({"seed": seed, "fisher": rounded(values)})
        for name, folder in ends.items():
            after = dict(pickles.load(snapshots(folder)[-1]).G_ema.named_parameters())
            rows[-1][name] = rounded(change(before, after))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return by layer Fisher information, change, control and their ratio, over seeds."""
    lines = []
    for layer in rows[0]["fisher"]:
        information = np.mean([row["fisher"][layer] for row in rows])
        parts = [[row[key][layer] for row in rows] for key in ("change", "control")]
        ratio = [a / b for a, b in zip(*parts, strict=True)]
        cells = [f"{information:.2e}", *(tables.spread(part) for part in parts)]
        lines.append([layer, *cells, tables.spread(ratio, 2)])
    return tables.markdown(["layer", "mean F", "change", "control", "change / control"], lines)


def findings(rows: list[dict[str, Any]]) -> str:
    """Return the two numbers that the paper's figure is about, for every seed."""
    lines = []
    for row in rows:
        names = list(row["fisher"])
        first, last = names[0], names[-1]
        over = {k: row["change"][k] / row["control"][k] for k in names}
        lines.append(
            f"seed {row['seed']}: F of the last layer is {row['fisher'][last]:.2e}, "
            f"{row['fisher'][last] / row['fisher'][first]:.3g} times the first's; change over "
            f"control goes from {over[first]:.2f} to {over[last]:.2f}"
        )
    return "; ".join(lines) + "."


def sections(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the document's sections."""
    return {
        part: f"{table(rows)}\n\n{findings(rows)}" if rows else "0 seeds were run."
        for part, rows in record["parts"].items()
    }


def draw(figure: Any, record: Mapping[str, Any]) -> None:
    """Draw Fisher information and change over control by depth, a line a seed."""
    parts = {part: rows for part, rows in record["parts"].items() if rows}
    grid = figure.subplots(len(parts), 2, squeeze=False)
    for (part, rows), (left, right) in zip(parts.items(), grid, strict=True):
        for row in rows:
            names = list(row["fisher"])
            short = [re.sub(r"synthesis\.|\.weight|layer ", "", name) for name in names]
            left.semilogy(short, [row["fisher"][k] for k in names], ".-")
            right.plot(short, [row["change"][k] / row["control"][k] for k in names], ".-")
        left.set(title=f"{part}: mean Fisher information")
        right.set(title=f"{part}: change / control", ylim=(0, max(2, right.get_ylim()[1])))
        for panel in (left, right):
            panel.set_xlabel("layer")
            panel.tick_params(axis="x", rotation=60)
            panel.grid(alpha=0.3)


@click.command(help=__doc__.split("\n")[0])
@click.option("--size", default=32, show_default=True)
@click.option("--width", default=16, show_default=True, help="Channels of the last layer but one.")
@click.option("--steps", default=(4000, 1000), show_default=True, help="On source and target.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--target", default="lorelei", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=f"out/{NAME}", show_default=True)
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS)
def main(
    size: int, width: int, steps: tuple[int, int], seeds: int, target: str, out: Path, docs: Path
) -> None:
    """Run what is missing, then report."""
    torch.set_num_threads(cores())
    key = f"dcgan-{target}-{size}-{width}-{steps[0]}-{steps[1]}"
    rows = [
        remembered(
            out / f"{key}-seed{seed}.json",
            functools.partial(dcgan, seed, size, width, steps, target),
        )
        for seed in range(seeds)
    ]
    settings = {"size": size, "width": width, "steps": steps, "target": target}
    few = {**few_shot.FewShot.settings, "target": target}
    parts = {"DCGAN": rows, "StyleGAN2": stylegan2(target, out, few)}
    record = {
        "experiment": NAME,
        "settings": settings,
        "command": f"python examples/fisher_figure.py --size={size} --width={width} "
        f"--steps {steps[0]} {steps[1]} --seeds={seeds} --target={target}",
        "processor": processor(),
        "commit": commit(),
        "parts": parts,
    }
    save(record, docs)
    height = 3.8 * sum(map(bool, parts.values()))
    tables.save_figure(docs / f"{NAME}.png", (10, height), lambda figure: draw(figure, record))
    tables.publish(docs / f"{NAME}.md", sections(record))


if __name__ == "__main__":
    main()
