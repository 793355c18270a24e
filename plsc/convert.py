"""Weights of one format → another one: plsc's own, timm's, Hugging Face's, Google's npz, or .pdparams."""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plsc import environment, hub
from plsc.errors import ConfigError
from plsc.model_card import ModelCard
from plsc.registry import nearest
from plsc.weights import Source, formats, read, unsaid, without_head, write

if TYPE_CHECKING:
    from plsc.config import Config

_FACTS = (("width", "embed_dim"), ("depth", "depth"), ("heads", "num_heads"), ("classes", "class_num"))
_EXPORTS = ("onnx", "paddle", "inference", "openvino", "tensorrt", "torchscript")


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        source: the file that was read. layout: whose names its arrays have. to: the format that was written.
        arrays: how many were read. card: what the source states of its model.
        unknown: shapes of arrays that were left out, by the source's names.
        written: the files; none where they were pushed.
        unsaid: what their format does not state of the model itself, see plsc.weights.unsaid.
        pushed: address of the hub's repository that has them; None where they were not pushed.
    """

    source: Path
    layout: str
    to: str
    arrays: int
    card: ModelCard
    unknown: dict[str, tuple[int, ...]]
    written: list[Path]
    unsaid: list[str]
    pushed: str | None = None

    def text(self) -> str:
        """What was read, what is missing or assumed, and what was written, as `plsc convert` prints it."""
        card = self.card
        facts = [f"{word} {card.spec[field]}" for word, field in _FACTS if card.spec.get(field) is not None]
        by_name = f" (its name: {card.architecture})" if card.architecture else ""
        lines = [f"{self.source}: {self.arrays} arrays in the names of {self.layout}; {', '.join(facts)}{by_name}"]
        if card.assumed:
            lines.append(f"  assumed, as neither the file nor its name states it: {card.assumptions}")
        lines += [f"  left out, unknown: {name} {list(shape)}" for name, shape in self.unknown.items()]
        if self.unsaid:
            entry = "not stated by the format itself, only by plsc's entry in the file"
            lines.append(f"  {entry}: {', '.join(self.unsaid)}")
        if self.to == "huggingface" and card.preprocess is None:
            lines.append("  no preprocessor_config.json: the source does not state how its pictures are prepared")
        lines += [f"written {path}" for path in self.written]
        if self.pushed is not None:
            lines.append(f"pushed {self.pushed}, which plsc opens as hf:{'/'.join(self.pushed.split('/')[-2:])}")
        return "".join(f"{line}\n" for line in lines)


def convert_weights(
    source: str | Path,
    to: str,
    output: str | Path | None = None,
    *,
    push: str | None = None,
    license: str | None = None,
    private: bool = False,
    ema: bool = False,
    backbone: bool = False,
    num_heads: int | None = None,
    config: "Config | None" = None,
    verify: bool = True,
) -> Conversion:
    """Write weights in another format, to files or the hub. Values are not changed: there and back gives the same bits.

    Args:
        source: whatever Global.pretrained_model takes: a weights file, a checkpoint, a run directory, …
        to: one of plsc.weights.formats().
        output: a file; for huggingface a folder, for timm either. What is there is replaced. None where they are
            pushed.
        push: OWNER/NAME of a repository of Hugging Face's hub, created where it is not there yet, that gets the files
            in one commit, with a README.md where it has none. The token is the hub's own: HF_TOKEN, or `hf auth login`.
        license: of the weights, for the README.md: an identifier of the hub's such as apache-2.0.
        private: whether push creates a repository that only its owner sees.
        ema: the averaged weights of a plsc checkpoint.
        backbone: leave out head and pre-logits.
        num_heads: attention heads, where they are not stated.
        config: a recipe whose Model is that of the weights, where they do not state it all.
        verify: compare a plsc checkpoint's files with their checksums.

    Raises:
        CheckpointError: the source cannot be read, its number of heads is unknown, or it has what the format has no
            place for; or the output cannot be written, or the hub not be reached.
        ConfigError: there is no such format, neither output nor push, or no such name of a repository.

    Example:
        plsc.convert_weights("output/mine", "huggingface", "mine_hf")
    """
    check_format(to)
    if (output is None) == (push is None):
        raise ConfigError("convert_weights takes either output, a path, or push, the name of a repository")
    if push is None and (license is not None or private):
        raise ConfigError("license and private are of a repository: they go with push")
    repository = None if push is None else hub.Repository(push, private)
    if to == "pdparams":
        environment.import_paddle()
    weights = _read(source, "ema" if ema else "model", config, verify)
    if num_heads is not None:
        given = {"num_heads"}
        card = weights.card
        weights.card = dataclasses.replace(
            card,
            spec={**card.spec, "num_heads": num_heads},
            inferred=card.inferred - given,
            assumed=card.assumed - given,
        )
    weights.check_known()
    card = without_head(weights.card) if backbone else weights.card
    made = Conversion(weights.path, weights.layout, to, len(weights.tensors), weights.card, weights.unknown, [], [])
    if output is not None:
        written = write(weights, to, output, backbone=backbone)
        return dataclasses.replace(made, written=written, unsaid=unsaid(card, to, written[0]))
    assert repository is not None
    figures = {} if backbone else hub.figures_of(weights.path)
    with tempfile.TemporaryDirectory(prefix="plsc-") as folder:
        written = write(weights, to, Path(folder, _file_name(to)), backbone=backbone)
        text = hub.readme(repository.name, card, to, written, figures=figures, license=license)
        address = repository.push(written, text, message=f"Weights in the format {to}, written by plsc convert")
        return dataclasses.replace(made, unsaid=unsaid(card, to, written[0]), pushed=address)


def _file_name(to: str) -> str:
    """What a file of a format is called in a repository of its own."""
    return {"google": "model.npz", "pdparams": "model.pdparams"}.get(to, "model.safetensors")


def _read(source: str | Path, part: Literal["model", "ema"], config: "Config | None", verify: bool) -> Source:
    if config is None:
        return read(source, part, verify=verify)
    environment.import_paddle()
    from plsc import loading

    loaded = loading.load_model(source, weights=part, config=config, verify=verify)
    return dataclasses.replace(loaded.source, card=loaded.card)


def check_format(to: str) -> None:
    """Raise ConfigError with the nearest name for what is not a format of weights."""
    known = formats()
    if to in known:
        return
    if to.lower() in _EXPORTS:
        raise ConfigError(
            f"{to} is not a format of weights but of whole models: `plsc export --format onnx` or `--format paddle` "
            "(plsc.export_model) writes those"
        )
    close = nearest(to, known)
    hint = f"did you mean {close}? There are" if close else "there are"
    raise ConfigError(f"no format of weights is called {to!r}; {hint} {', '.join(known)}")
