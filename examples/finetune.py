"""Fine-tune a model on a folder of pictures, one sub-folder a class, and name the classes of new ones.

    python examples/finetune.py --pictures flowers --weights deit_tiny_patch16_224.pth --model DeiT_tiny_patch16_224
    python examples/finetune.py

Without arguments it makes both by itself: a small ViT trained for a moment on handwritten digits, and a folder with
pictures of digits in two classes, those with a closed loop and those without.
"""

import argparse
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import plsc

WITH_A_LOOP = {0, 6, 8, 9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", help="a folder with one sub-folder a class")
    parser.add_argument("--weights", help="anybody's weights of a ViT")
    parser.add_argument(
        "--model", default="DeiT_tiny_patch16_224", help="the model of the weights, see plsc list models"
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--output", default="output/finetune", help="the run directory")
    arguments = parser.parse_args()
    output = Path(arguments.output)
    if arguments.pictures:
        config = of_folder(arguments, output)
    else:
        config = of_digits(arguments.epochs, output)

    result = plsc.train(config)
    print(f"best top-1 on held-out pictures: {result.best['value']:.2%}, after update {result.best['step']}")

    predictor = plsc.load_predictor(result.run_directory)
    root = Path(config.DataLoader["Eval"].dataset.arguments["root"])
    some = sorted(root.rglob("*.png"))[:3] + sorted(root.rglob("*.jpg"))[:3]
    for path, (first, *_) in zip(some, predictor.predict(some, topk=1), strict=True):
        print(f"{path.relative_to(root)}: {first.name}, {first.probability:.0%}")


def of_folder(arguments: argparse.Namespace, output: Path) -> plsc.Config:
    """The shipped recipe on the given pictures, a fifth of each class held out."""
    data = {"root": arguments.pictures, "val_fraction": 0.2}
    overrides = {f"DataLoader.{mode}.dataset.{key}": value for mode in ("Train", "Eval") for key, value in data.items()}
    overrides |= {"Model.name": arguments.model, "Model.class_num": "auto", "Global.epochs": arguments.epochs}
    overrides |= {"Global.pretrained_model": arguments.weights, "Global.output_dir": str(output)}
    return plsc.load_config("finetune_folder", overrides)


def of_digits(epochs: int, output: Path) -> plsc.Config:
    """A model trained on ten digits, to be fine-tuned on two classes of pictures."""
    first = plsc.train(
        plsc.load_config(
            "digits", {"Global.epochs": 10, "LRScheduler.warmup_epochs": 1, "Global.output_dir": f"{output}-start"}
        )
    )
    pictures = write_pictures(output.with_name(f"{output.name}-pictures"))
    recipe = plsc.load_config("digits").to_dict()
    for mode, section in recipe["DataLoader"].items():
        held_out = {"name": "ImageFolder", "root": str(pictures), "val_fraction": 0.2}
        transforms = [{"DecodeImage": None}, {"NormalizeImage": {"mean": [0.5] * 3, "std": [0.5] * 3}}]
        shift = [{"RandShift": {"pixels": 1}}] if mode == "Train" else []
        section["dataset"] = held_out | {"transform_ops": [transforms[0], *shift, transforms[1]]}
    recipe["Model"] |= {"class_num": "auto", "in_chans": 3}  # the patch embedding is adapted to colour pictures
    recipe["LRScheduler"] |= {"learning_rate": 1e-3, "warmup_epochs": 0.5}
    recipe["Global"] |= {
        "pretrained_model": str(first.run_directory),
        "finetune": True,  # keeps the backbone, initialises the head
        "epochs": epochs,
        "eval_interval": 1,
        "output_dir": str(output),
    }
    return plsc.load_config(recipe)


def write_pictures(folder: Path) -> Path:
    """scikit-learn's digits as PNG files in two class folders."""
    digits = load_digits()
    for index, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("loop" if digit in WITH_A_LOOP else "no_loop") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype("uint8")).save(path)
    return folder


if __name__ == "__main__":
    main()
