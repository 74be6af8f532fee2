"""Fetches the emoji from npm, renders them in two styles, and writes the LoRA's datasets.

    python assets/prepare_data.py --work build/emoji

leaves in `--work`: `renders.safetensors` (uint8 pixels, see `render_all`) and `subjects.json` (see `subject_rows`),
which `train_base.py` reads; and in `assets/datasets/` the two folders the demo trains and measures on.
Needs `npm` on the PATH and the PyPI package `resvg_py`.
"""

import argparse
import io
import json
import random
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

ASSETS = Path(__file__).resolve().parent
PACKAGES = (
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "emojibase-data@17.0.0",
    "fluentui-emoji-js@1.2.1",
)
STYLES = {
    "flat": "iconify-json-fluent-emoji-flat-1.2.6",
    "high-contrast": "iconify-json-fluent-emoji-high-contrast-1.2.6",
}
RESOLUTION = 64
AUGMENT_RESOLUTION = 128
NUM_TRAIN, NUM_HELD_OUT, NUM_UNSEEN = 192, 32, 32
FIRST_HELD_OUT = 96
SPLIT_SEED = 0
CAPTIONS_PER_EMPTY = 3


def caption(name: str) -> str:
    """The LoRA's caption, and the base's of the flat style: the LoRA has to change what the very same words draw."""
    article = "an" if name[0].lower() in "aeiou" else "a"
    return f"{article} {name} emoji"


def high_contrast_caption(name: str) -> str:
    """The base's: the same words, so that a text encoder that reads from left to right sees the same subject."""
    return f"{caption(name)}, line drawing"


def download(folder: Path) -> None:
    """`npm pack`s the pinned packages and unpacks each to `folder/<archive name>/`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", *PACKAGES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for archive in sorted(folder.glob("*.tgz")):
        with tarfile.open(archive) as tar:
            tar.extractall(folder / archive.stem, filter="data")


def read_subjects() -> list[str]:
    text = "".join(line for line in (ASSETS / "subjects.txt").open() if not line.startswith("#"))
    names = [name.strip() for name in re.split(r"[,\n]", text) if name.strip()]
    assert len(names) == len(set(names)), "a subject is listed twice"
    return names


def icons_by_label(npm: Path) -> dict[str, str]:
    """Emoji name (emojibase) -> icon name (iconify), for what both styles have. Skin tones are no entries."""
    labels = json.loads((npm / "emojibase-data-17.0.0/package/en/data.json").read_text())
    by_style = [json.loads((npm / folder / "package/chars.json").read_text()) for folder in STYLES.values()]
    found = {}
    for emoji in labels:
        code = emoji["hexcode"].lower()
        icons = {chars.get(code, chars.get(code.replace("-fe0f", ""))) for chars in by_style}
        if len(icons) == 1 and None not in icons:
            found[emoji["label"]] = icons.pop()
    return found


def render(body: str, size: int) -> np.ndarray:
    """An SVG body on the set's 32-unit grid -> (size, size, 3) uint8 on white."""
    import resvg_py  # of all that is here only this needs it

    attributes = (
        f'xmlns="http://www.w3.org/2000/svg" color="#000000" viewBox="0 0 32 32" width="{size}" height="{size}"'
    )
    svg = f"<svg {attributes}>{body}</svg>"
    png = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", width=size, height=size)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def render_all(npm: Path, subjects: list[str]) -> dict[str, np.ndarray]:
    """`flat`, `high-contrast`: the subjects at 64 pixels, in order. `augment`: every emoji of both at 128 pixels."""
    icons = icons_by_label(npm)
    missing = [name for name in subjects if name not in icons]
    assert not missing, f"not in both styles: {missing}"
    pixels, augment = {}, []
    for style, folder in STYLES.items():
        bodies = {
            name: icon["body"]
            for name, icon in json.loads((npm / folder / "package/icons.json").read_text())["icons"].items()
        }
        pixels[style] = np.stack([render(bodies[icons[name]], RESOLUTION) for name in subjects])
        augment += [render(bodies[icon], AUGMENT_RESOLUTION) for icon in sorted(set(icons.values()))]
    return pixels | {"augment": np.stack(augment)}


def split(num_subjects: int) -> tuple[list[int], list[int], list[int]]:
    """Indices of the LoRA's subjects, of the held-out ones, and of those the autoencoder alone sees in high contrast.

    A seeded draw, so that every category is in each. The third part is in no dataset.
    """
    order = random.Random(SPLIT_SEED).sample(range(num_subjects), NUM_TRAIN + NUM_HELD_OUT + NUM_UNSEEN)
    unseen, order = order[-NUM_UNSEEN:], order[:-NUM_UNSEEN]
    held_out = order[FIRST_HELD_OUT : FIRST_HELD_OUT + NUM_HELD_OUT]
    return sorted(set(order) - set(held_out)), sorted(held_out), sorted(unseen)


def subject_rows(subjects: list[str]) -> list[dict[str, Any]]:
    """By subject its name, its captions for the base, and whether the base may see it in high contrast."""
    _, _, unseen = split(len(subjects))
    return [
        {
            "name": name,
            "caption": caption(name),
            "high_contrast_caption": high_contrast_caption(name),
            "unseen": index in unseen,
        }
        for index, name in enumerate(subjects)
    ]


def training_captions(name: str) -> list[str]:
    """One of these is drawn per visit: mostly the caption, at times none.

    Guidance extrapolates away from what the empty caption draws: a LoRA that never saw it draws stained backgrounds.
    """
    return [caption(name)] * CAPTIONS_PER_EMPTY + [""]


def write_dataset(
    folder: Path, subjects: list[str], indices: list[int], pixels: dict[str, np.ndarray], styles: list[str]
) -> None:
    """An imagefolder. With one style it is to train on.

    With two there is a folder for each, the rows name theirs in a column `style`, and have the caption alone.
    """
    shutil.rmtree(folder, ignore_errors=True)  # another list of subjects must leave no image behind
    folder.mkdir(parents=True)
    rows = []
    for style in styles:
        for index in indices:
            stem = re.sub(r"[^a-z0-9]+", "-", subjects[index].lower())
            name = f"{stem}.png" if len(styles) == 1 else f"{style}/{stem}.png"
            (folder / name).parent.mkdir(exist_ok=True)
            Image.fromarray(pixels[style][index]).save(folder / name, optimize=True)
            if len(styles) == 1:
                rows.append({"file_name": name, "text": training_captions(subjects[index])})
            else:
                rows.append({"file_name": name, "text": caption(subjects[index]), "style": style})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--work", type=Path, default=Path("build/emoji"))
    parser.add_argument("--datasets", type=Path, default=ASSETS / "datasets")
    args = parser.parse_args()

    npm = args.work / "npm"
    if not npm.is_dir():
        download(npm)
    subjects = read_subjects()
    pixels = render_all(npm, subjects)
    save_file(pixels, args.work / "renders.safetensors")
    (args.work / "subjects.json").write_text(json.dumps(subject_rows(subjects), indent=1))

    train, held_out, _ = split(len(subjects))
    write_dataset(args.datasets / "emoji-high-contrast", subjects, train, pixels, ["high-contrast"])
    write_dataset(args.datasets / "emoji-high-contrast-heldout", subjects, held_out, pixels, ["flat", "high-contrast"])
    print(f"{len(subjects)} subjects, {len(pixels['augment'])} images for augmentation")


if __name__ == "__main__":
    main()
