"""Build the example data sets of this folder from three emoji packages of the npm registry.

    python examples/make_data.py                               # fetches the packages with npm
    python examples/make_data.py --google DIR --twitter DIR --fluent DIR

The same packages and the same Pillow give the same files, byte for byte. README.md and LICENSES.md
in this folder say what the files hold and whose art it is.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import click
from PIL import Image

PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
}
ART = {"google": "img/google/64", "twitter": "img/twitter/64", "fluent": "assets"}
PORTRAITS = ("person", "person-gesture", "person-role", "person-fantasy")
RESOLUTION = 64

# Code points that change skin, sex or rendering of a drawing, but not what is drawn.
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
MODIFIERS = SKIN_TONES | {"200d", "fe0f", "2640", "2642"}
# Emoji that have a code point for each sex: all three count as one base, named by the neutral one.
SEXES = {
    "1f9d1": {"1f468", "1f469"},  # adult
    "1f9d2": {"1f466", "1f467"},  # child
    "1f9d3": {"1f474", "1f475"},  # older adult
    "1f384": {"1f385", "1f936"},  # Claus
    "1fac4": {"1f930", "1fac3"},  # pregnant
    "1fac5": {"1f478", "1f934"},  # crown
}
NEUTRAL = {code: neutral for neutral, codes in SEXES.items() for code in codes}


def base_code_point(name: str) -> str:
    """What is drawn, skin tone and sex apart: `1f469-1f3fd-200d-1f33e.png` gives `1f33e`."""
    codes = [code for code in Path(name).stem.split("-") if code not in MODIFIERS]
    return NEUTRAL.get(codes[-1], codes[-1])


def portrait_names(package: Path) -> list[str]:
    """Sorted file names of all emoji that show one person, each skin tone and sex a file."""
    table = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
    people = [emoji for emoji in table if emoji["subcategory"] in PORTRAITS]
    drawings = [d for e in people for d in (e, *e.get("skin_variations", {}).values())]
    return sorted(drawing["image"] for drawing in drawings)


def as_png(path: Path) -> bytes:
    """The picture at `path` as an RGB PNG of 64x64 pixels on white."""
    with Image.open(path) as image:
        art = image.convert("RGBA")
    canvas = Image.new("RGBA", art.size, "white")
    canvas.alpha_composite(art)
    if canvas.size != (RESOLUTION, RESOLUTION):
        canvas = canvas.resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    canvas.convert("RGB").save(buffer, "png", optimize=True)
    return buffer.getvalue()


def write_zip(path: Path, pngs: dict[str, bytes]) -> None:
    """Store `pngs` uncompressed under a fixed date, so that equal pictures give equal files."""
    part = path.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, png in sorted(pngs.items()):
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), png)
    os.replace(part, path)
    click.echo(f"{path.name}: {len(pngs)} images, {path.stat().st_size / 2**20:.2f} MiB")


def split(pngs: dict[str, bytes], chosen: list[str]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The `chosen` images, and those that share a base code point with none of them."""
    bases = {base_code_point(name) for name in chosen}
    heldout = {name: png for name, png in pngs.items() if base_code_point(name) not in bases}
    return {name: pngs[name] for name in chosen}, heldout


def fetch(package: str, folder: Path) -> Path:
    """Unpack `package` of the npm registry into `folder` and return where its files are."""
    command = ["npm", "pack", package, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(
            f"{package}: npm cannot fetch it ({error}); install npm, or let it reach a registry"
        ) from error
    target = folder / package.replace("/", "-")
    with tarfile.open(folder / done.stdout.strip()) as archive:
        archive.extractall(target, filter="data")
    return target / "package"


def drawings(style: str, package: Path, names: list[str]) -> dict[str, bytes]:
    """PNG of each of `names` in one style; the Fluent package keeps the same names as WebP."""
    suffix = ".webp" if style == "fluent" else ".png"
    paths = {name: (package / ART[style] / name).with_suffix(suffix) for name in names}
    return {name: as_png(path) for name, path in paths.items() if path.exists()}


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(help=__doc__.split("\n")[0])
@click.option("--google", type=FOLDER, help="Unpacked emoji-datasource-google  [default: fetched]")
@click.option(
    "--twitter", type=FOLDER, help="Unpacked emoji-datasource-twitter  [default: fetched]"
)
@click.option("--fluent", type=FOLDER, help="Unpacked fluent-emoji-3d  [default: fetched]")
@click.option("--outdir", type=FOLDER, default=Path(__file__).parent, help="Where the files go")
def main(outdir: Path, **folders: Path | None) -> None:
    """Write the source, ten-shot and held-out archives into `outdir`."""
    ten = (Path(__file__).parent / "ten.txt").read_text(encoding="ascii").split()
    with tempfile.TemporaryDirectory() as temporary:
        packages = {
            style: folder or fetch(PACKAGES[style], Path(temporary))
            for style, folder in folders.items()
        }
        names = portrait_names(packages["google"])
        art = {style: drawings(style, package, names) for style, package in packages.items()}
    write_zip(outdir / "noto-portraits.zip", art["google"])
    for style, title in (("twitter", "twemoji"), ("fluent", "fluent")):
        shots, heldout = split(art[style], ten)
        write_zip(outdir / f"{title}-ten.zip", shots)
        write_zip(outdir / f"{title}-heldout.zip", heldout)


if __name__ == "__main__":
    main()
