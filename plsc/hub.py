"""Files of weights → a repository of Hugging Face's hub, with a README.md that says what they are.

The way back, from a name to files on this machine, is plsc/remote.py. Reference: the hub's model cards,
https://huggingface.co/docs/hub/model-cards
"""

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from plsc import places, remote
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError, ConfigError
from plsc.files import read_json
from plsc.model_card import ModelCard
from plsc.runs.records import read_metrics

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger("plsc")

README = "README.md"
_SHOWN_CLASSES = 20
_FACTS = (  # of the table, in this order: (what it is called, the spec's field)
    ("patch size", "patch_size"),
    ("input channels", "in_chans"),
    ("width", "embed_dim"),
    ("depth", "depth"),
    ("heads", "num_heads"),
    ("MLP ratio", "mlp_ratio"),
    ("pooling", "pool"),
    ("activation of the MLPs", "act"),
    ("epsilon of the norms", "epsilon"),
    ("register tokens", "reg_tokens"),
    ("classes", "class_num"),
)


# -- the README -----------------------------------------------------------------------------------


def readme(
    repository: str,
    card: ModelCard,
    to: str,
    written: Sequence[Path],
    *,
    figures: Mapping[str, float] | None = None,
    license: str | None = None,
) -> str:
    """The text of a model card: architecture, preprocessing, classes, figures, and how to load the weights.

    Args:
        repository: OWNER/NAME. card: of the weights. to: their format. written: the files.
        figures: of an evaluation of these weights. license: its identifier, such as apache-2.0.

    Returns:
        Markdown, with the hub's metadata at its head; it states nothing that is not known.
    """
    names = {path.name for path in written}
    config = next(
        (read_json(path, dict, error=CheckpointError) for path in written if path.name == "config.json"), None
    )
    library = {"timm": "timm", "huggingface": "transformers"}.get(to) if config else None
    classes = card.spec.get("class_num") or 0
    task = "image-classification" if classes else "image-feature-extraction"
    head: dict[str, Any] = {"library_name": library or "plsc", "pipeline_tag": task, "tags": ["vision", "plsc"]}
    head |= {"license": license} if license else {}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {repository.rpartition('/')[2]}",
        f"Weights of a {card.model or 'model'}{f' ({card.architecture})' if card.architecture else ''}, written by "
        "`plsc convert`.",
        "## Model\n\n" + _table(_facts(card)),
    ]
    if card.preprocess is not None:
        parts.append("## Pictures\n\n" + _table(_pictures(card.preprocess)))
    if card.class_names:
        parts.append("## Classes\n\n" + _classes(card.class_names))
    if figures:
        rows = {name: f"{value:.4f}" for name, value in figures.items()}
        parts.append("## Evaluation\n\nMeasured by the run that trained these weights.\n\n" + _table(rows))
    parts.append("## Use\n\n" + "\n\n".join(_use(repository, card, library, config or {}, names)))
    return "\n\n".join(parts) + "\n"


def _facts(card: ModelCard) -> dict[str, Any]:
    size = card.img_size
    rows = [("input size", "img_size", size and f"{size[0]} x {size[1]} pixels")]
    rows += [(title, field, card.spec.get(field)) for title, field in _FACTS]
    facts: dict[str, Any] = {}
    for title, field, value in rows:
        if value is not None and (value or field == "class_num"):
            assumed = " (assumed: the weights do not state it)" if field in card.assumed else ""
            facts[title] = f"{_shown(value)}{assumed}"
    if card.activation is not None:
        facts["scores of classes"] = f"{card.activation} of the logits"
    return facts


def _pictures(preprocess: Preprocess) -> dict[str, Any]:
    """Rows of a table, of what is done in this order."""
    resize, crop = preprocess.resize, preprocess.crop
    side = "short side to {} pixels" if isinstance(resize, int) else "to {} pixels"
    rows = {} if resize is None else {"resize": f"{side.format(_shown(resize))}, {preprocess.interpolation}"}
    rows |= {} if crop is None else {"centre crop": f"{_shown(crop)} pixels"}
    rows |= {"channels": "red, green, blue" if preprocess.rgb else "blue, green, red"}
    rows |= {"values times": f"{preprocess.scale:.8g}", "mean": _shown(preprocess.mean), "std": _shown(preprocess.std)}
    return rows


def _shown(value: Any) -> str:
    return (
        ", ".join(f"{v:g}" for v in value) if isinstance(value, Sequence) and not isinstance(value, str) else f"{value}"
    )


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _classes(names: Sequence[str]) -> str:
    listed = [f"{i:4}  {' '.join(name.split())}".replace("`", "'") for i, name in enumerate(names[:_SHOWN_CLASSES])]
    more = [f"   …  {len(names) - _SHOWN_CLASSES} more"] if len(names) > _SHOWN_CLASSES else []
    return "\n".join(["```text", *listed, *more, "```"])


def _use(
    repository: str, card: ModelCard, library: str | None, config: Mapping[str, Any], names: set[str]
) -> list[str]:
    """How to load the weights: with plsc always, with others where the files hold what these need."""
    classifies = bool(card.spec.get("class_num"))
    lines = ["import plsc", "", f'loaded = plsc.load_model("hf:{repository}")  # loaded.network, loaded.card']
    if classifies and card.preprocess is not None:
        lines += [f'predictor = plsc.load_predictor("hf:{repository}")']
        if card.activation is None:
            lines += [
                "# what makes probabilities of logits is not stated: softmax, or sigmoid of classes that exclude none"
            ]
        given = ', activation="softmax"' if card.activation is None else ""
        lines += [f'predictor.predict(["photo.jpg"]{given})']
    parts = ["With plsc (`pip install 'plsc[hub]'`):", _python(lines)]
    if library == "timm":
        lines = ["import timm", "", f'model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()']
        parts += ["With timm:", _python(lines)]
    if library == "transformers":
        kind = config["architectures"][0]
        imported = ["AutoImageProcessor"] if "preprocessor_config.json" in names else []
        lines = [f"from transformers import {', '.join([*imported, kind])}", ""]
        lines += [f'processor = AutoImageProcessor.from_pretrained("{repository}")'] if imported else []
        lines += [f'model = {kind}.from_pretrained("{repository}").eval()']
        parts += ["With transformers:", _python(lines)]
    return parts


def _python(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def figures_of(weights: Path) -> dict[str, float]:
    """What the run of a checkpoint's file of weights measured of them: figures of its evaluations at that step.

    Args:
        weights: model.safetensors or ema.safetensors of a checkpoint; of other files there are none.
    """
    run, step = places.run_directory(weights), places.step_of(weights.parent)
    if run is None or step is None:
        return {}
    kind = "ema" if weights.name == "ema.safetensors" else "raw"
    figures: dict[str, float] = {}
    for record in read_metrics(run):
        if record["kind"] == "eval" and record["step"] == step and record.get("weights") == kind:
            figures = {name: value for name, value in record.items() if _is_figure(name, value)}
    return figures


def _is_figure(name: str, value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and name not in ("step", "epoch")


# -- the repository -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repository:
    """A repository of the hub that may be written to, as far as is known without asking the hub.

    Attributes:
        name: OWNER/NAME. private: whether only its owner may see it; it is created so, and a public one refused.
    """

    name: str
    private: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for a name that the hub does not take, CheckpointError without its client or a token."""
        try:
            from huggingface_hub import get_token
            from huggingface_hub.errors import HFValidationError
            from huggingface_hub.utils import validate_repo_id
        except ImportError as error:
            raise CheckpointError(f"{self.name}: needs huggingface_hub: pip install 'plsc[hub]'") from error
        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            raise ConfigError(f"{self.name!r} is not a name of a repository: {error}") from error
        if self.name.count("/") != 1:
            raise ConfigError(f"{self.name!r} is not a name of a repository; it is OWNER/NAME")
        if remote.is_offline():
            raise CheckpointError(
                f"{self.name}: cannot be written: PLSC_OFFLINE or HF_HUB_OFFLINE forbids the network; unset it"
            )
        if not get_token():
            raise CheckpointError(
                f"{self.name}: cannot be written: there is no token of the hub; `hf auth login` keeps one, or set "
                "HF_TOKEN. It needs the permission to write"
            )

    def push(self, files: Sequence[Path], text: str, *, message: str) -> str:
        """Create the repository where it is not there yet, and put files and README.md into it in one commit.

        A README.md that is there already stays.

        Args:
            files: they get their own names. text: of README.md. message: of the commit.

        Returns:
            The repository's address.

        Raises:
            CheckpointError: the hub cannot be reached or refuses, the repository is public although a private one was
                asked for, or it has other weights, or documents of other weights, beside which these would not be
                found.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="plsc")
        with self._reaching(api):
            api.create_repo(self.name, private=self.private or None, exist_ok=True)  # one that is there stays as it is
            if self.private and not api.repo_info(self.name).private:
                raise CheckpointError(
                    f"{self.name}: is public, and nothing was uploaded; make it private at "
                    f"{api.endpoint}/{self.name}/settings, push to another name, or leave out --private"
                )
            there = set(api.list_repo_files(self.name))
            ours = {path.name for path in files}
            others = sorted(name for name in there - ours if _is_of_weights(name))
            if others:
                raise CheckpointError(
                    f"{self.name}: holds {', '.join(others)} already, which would be taken for part of the new "
                    "weights; remove them there, or push to another name"
                )
            added = [CommitOperationAdd(path.name, str(path)) for path in files]
            if README in there:
                log.warning("%s: its README.md stays as it is; remove it there to have it written again", self.name)
            else:
                added.append(CommitOperationAdd(README, text.encode()))
            api.create_commit(self.name, added, commit_message=message)
        return f"{api.endpoint}/{self.name}"

    @contextlib.contextmanager
    def _reaching(self, api: "HfApi") -> Iterator[None]:
        """Context whose errors of network and hub are CheckpointErrors that say what to do."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        try:
            yield
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            cause = {
                401: "the hub does not accept the token; `hf auth login` keeps a new one, or set HF_TOKEN",
                403: f"the token may not write to {self.name.partition('/')[0]}; make one that may, at the hub's "
                "settings/tokens",
            }
            reason = cause.get(status, remote.reason(error)) if isinstance(status, int) else remote.reason(error)
            raise CheckpointError(f"{self.name}: cannot be written: {reason}") from error
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            cause_of = error.__cause__ or error
            raise CheckpointError(
                f"{self.name}: cannot be written to {api.endpoint}: {remote.reason(cause_of)}; when the network is "
                "back the same command continues"
            ) from error


def _is_of_weights(name: str) -> bool:
    patterns = (*(pattern for group in remote.HUB_FILES for pattern in group), *remote.HUB_DOCUMENTS)
    return any(fnmatch(name, pattern) for pattern in patterns)
