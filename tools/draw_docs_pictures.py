"""Draw the pictures of docs/visualization.md again.

    python tools/draw_docs_pictures.py --weights deit_tiny_patch16_224.npz -c DeiT_tiny_patch16_224_eval \
        --class-names synset_words.txt

The photographs are scikit-learn's two sample pictures, china.jpg and flower.jpg. The model is whatever --weights
names; the pictures that are shipped show DeiT-Tiny/16 (Touvron et al., 2021, Apache-2.0), as anybody can download it.
The curves are of two short runs on digits, trained here, which takes a minute or more.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plsc.cli import main

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
WIDEST, LARGEST = 1400, 290_000  # pixels and bytes of a picture in the repository
RATES = ("2e-3", "5e-4")


def plsc(*arguments):
    """One command; ends the program where it fails."""
    code = main([str(argument) for argument in arguments])
    if code:
        raise SystemExit(code)


def draw(name: str, *arguments):
    """One picture, made small enough for the repository."""
    path = PICTURES / f"{name}.png"
    plsc("visualize", *arguments, "--output", path)
    with Image.open(path) as drawn:
        picture = drawn.convert("RGB")
    width = min(WIDEST, picture.width)
    while True:
        smaller = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        palette = smaller.quantize(256, method=Image.Quantize.FASTOCTREE)
        smaller.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            return
        width = round(0.95 * width)


def photographs(folder: Path) -> list[Path]:
    """scikit-learn's sample pictures as files."""
    sample, paths = load_sample_images(), []
    for name, pixels in zip(sample.filenames, sample.images, strict=True):
        paths.append(folder / f"{Path(name).stem}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def runs(folder: Path) -> list[Path]:
    """Two short runs on digits that differ in the learning rate."""
    folders = [folder / f"lr-{rate}" for rate in RATES]
    for rate, output in zip(RATES, folders, strict=True):
        lengths = ("-o", "Global.epochs=30", "-o", "Global.eval_interval=2", "-o", "Global.print_batch_step=11")
        plsc(
            "train",
            "-c",
            "digits",
            "-o",
            f"LRScheduler.learning_rate={rate}",
            "-o",
            f"Global.output_dir={output}",
            *lengths,
        )
    return folders


def draw_all():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a Vision Transformer of 224 px, such as DeiT-Tiny/16")
    parser.add_argument("-c", "--config", help="the recipe of its preprocessing, for weights that do not state it")
    parser.add_argument("--class-names", help="a name a line")
    arguments = parser.parse_args()
    model = ["--weights", arguments.weights]
    recipe = ["-c", arguments.config] if arguments.config else []
    named = ["--class-names", arguments.class_names] if arguments.class_names else []
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        china, flower = photographs(Path(folder))
        draw("attention", "attention", *model, *recipe, *named, china, flower)
        draw("layers", "attention", *model, *recipe, *named, "--by", "layer", flower)
        draw("heads", "attention", *model, *recipe, *named, "--by", "head", "--layer", "8", "--raw", china, flower)
        draw("position", "position", *model, *recipe, "--resolution", "384", china, flower)
        draw("filters", "filters", *model)
        draw("patches", "patches", *model, *recipe, china)
        draw("curves", "curves", *runs(Path(folder)))
    draw("schedule", "curves", "-c", "ViT_base_patch16_224_in1k_1n8c_dp_fp16o2", "--steps", "93900")


if __name__ == "__main__":
    draw_all()
