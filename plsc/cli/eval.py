"""Measure checkpoints and exports on the data of DataLoader.Eval, every sample exactly once.

Several --weights, --data and --resolution are measured in every combination, a row each. Prints a
table and writes it as JSON, CSV or Markdown. Without -c the configuration is the one that the
checkpoint was trained with. Weights must fit the model as they are.
"""

from pathlib import Path

from plsc import environment
from plsc.cli import results
from plsc.cli.common import (
    add_config_arguments,
    checked_output,
    hint_at_averaged,
    in_world,
    several_above_zero,
)
from plsc.cli.eval_plan import plan
from plsc.errors import CheckpointError, ConfigError, PlscError

EXAMPLES = """\
  plsc eval --weights output/digits                      the best checkpoint of a run
  plsc eval --weights output/digits/checkpoints/latest --ema
  plsc eval -c DeiT_tiny_patch16_224_eval --weights deit.npz --resolution 224,288      two image sizes
  plsc eval -c my_run.yaml --weights output/a --weights output/b --output table.md
  plsc eval -c my_run.yaml --weights output/a --data v1=lists/val.txt --data v2=pictures/v2
  plsc eval -c DeiT_tiny_patch16_224_eval --weights deit.onnx --real real.json --metrics ECE
  plsc eval --weights output/digits --per-class classes.csv --confusion confusion.png
  plsc eval -c my_run.yaml -o Global.pretrained_model=output/mine/checkpoints/best
  python -m paddle.distributed.launch --nproc_per_node 2 tools/eval.py --weights output/digits
"""


def add_arguments(parser):
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--weights",
        action="append",
        metavar="PATH",
        help="a run directory, a checkpoint folder, anybody's weights (docs/checkpoints.md) or an export; may be given "
        "several times; default: Global.pretrained_model",
    )
    parser.add_argument("--ema", action="store_true", help="evaluate the averaged weights of the checkpoint")
    parser.add_argument(
        "--resolution",
        type=several_above_zero,
        metavar="PIXELS",
        help="evaluate at this image size, or several such as 224,384: the resize and crop of DataLoader.Eval change "
        "in proportion, and the position embedding is resized",
    )
    parser.add_argument(
        "--data",
        action="append",
        metavar="PATH",
        help="another data set for DataLoader.Eval: a folder of class folders, a list file (its paths count from its "
        "folder), or a recipe's .yaml, of which the whole DataLoader.Eval is taken; NAME=PATH names it in the table; "
        "may be given several times",
    )
    parser.add_argument(
        "--metrics",
        type=_names,
        default=[],
        metavar="NAMES",
        help="further metrics (`plsc list metrics`), for instance ECE or mAP,AUC,F1,PrecisionAt1; ConfusionMatrix is "
        "printed, up to 50 classes",
    )
    parser.add_argument(
        "--real", metavar="FILE", help="ImageNet-ReaL's real.json: accuracy on the reassessed labels (RealAcc)"
    )
    parser.add_argument(
        "--per-class", metavar="FILE", help="write samples and accuracy of each class (PerClassAccuracy) as .csv"
    )
    parser.add_argument(
        "--confusion",
        metavar="FILE",
        help="write which class is taken for which (ConfusionMatrix) as .csv, .png or .svg",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="names for --per-class and --confusion, one a line; default: those of the data set or the checkpoint",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where the table goes, as .json, .csv or .md; default: evaluation.json in the run directory, with -c in "
        "Global.output_dir",
    )


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def run(arguments) -> int:
    output = arguments.output and checked_output("--output", arguments.output, results.TABLE_ENDINGS)
    if arguments.per_class:
        arguments.per_class = checked_output("--per-class", arguments.per_class, results.CLASSES_ENDINGS)
    if arguments.confusion:
        arguments.confusion = checked_output("--confusion", arguments.confusion, results.CONFUSION_ENDINGS)
    planned = plan(arguments)
    config = next((config for _, config in planned if config is not None), None)
    if config is None:
        raise ConfigError("\n".join(dict.fromkeys(row.error for row, _ in planned)))
    from plsc.engine import tracking

    tracking.start_logging(None, verbose=environment.rank() == 0)
    output = output or checked_output("--output", Path(config.Global.output_dir) / "evaluation.json")
    return in_world(config, lambda world: _measure_all(planned, output, world, arguments))


def _measure_all(planned, output: Path, world, arguments) -> int:
    """Measure row after row, print and write; returns the exit code: 1 where some rows failed, 2 where all did."""
    from plsc.engine import tracking

    rows, count = [], len(planned)
    for number, (row, config) in enumerate(planned, start=1):
        if count > 1:
            tracking.log.info("row %d of %d: %s", number, count, row.title)
        measured = _measure(row, config, world, arguments, alone=count == 1)
        rows.append(row)
        if row.error is not None:
            tracking.log.error("%s", row.error)
        elif world.is_first:
            hint_at_averaged(row.about["weights"], ema=arguments.ema)
            _write_details(*measured, arguments, number=number, count=count)
        if world.is_first:  # after each row, so that an interruption loses none that was measured
            results.write(rows, output, alone=count == 1)
    if world.is_first:
        print(results.list_of_figures(rows[0]) if count == 1 else results.table(rows))
        print(f"written to {output}")
    failed = [row.error is not None for row in rows]
    return 2 if all(failed) else int(any(failed))


def _measure(row, config, world, arguments, *, alone: bool):
    """Fill in one row's figures, or what it failed of; returns (metrics, class names), None where it failed.

    Errors are raised where there is no other row, and where another process may be waiting in the midst of this one.
    """
    if row.error is None:
        try:
            evaluator, network, class_names = _prepare(row, config, world, arguments)
        except PlscError as error:
            if alone:
                raise
            row.error = str(error)
    row.error = _common_failure(world, row.error)
    if row.error is not None:
        return None
    try:
        row.figures = evaluator.run(network)
    except PlscError as error:
        if alone or world.size > 1:
            raise
        row.error = str(error)
        return None
    finally:
        evaluator.loader.close()
    row.percent = {name for metric in evaluator.metrics for name in metric.names}
    return evaluator.metrics, class_names


def _common_failure(world, error: str | None) -> str | None:
    """What kept any process from preparing a row, on all of them alike; None where nothing did."""
    import paddle

    if world.size == 1:
        return error
    if world.on_cpu:
        world.barrier()
    failed = world.all_reduce_max(paddle.to_tensor([int(error is not None)])).item()
    if failed and error is None:
        return "another process could not prepare it; the reason is in that process's output"
    return error


def _prepare(row, config, world, arguments):
    """Everything up to the first batch: (evaluator, network, class names)."""
    import paddle

    from plsc import build
    from plsc.engine import tracking
    from plsc.engine.evaluator import Evaluator
    from plsc.engine.precision import Precision

    for note in config.notes:
        tracking.log.info("%s", note)
    feed = build.feed(config, "Eval", batch_size=config.DataLoader["Eval"].sampler.arguments["batch_size"])
    network, class_names, activation = _network(row, config, feed, arguments, on_cpu=world.on_cpu)
    _check_numbering(config, feed.data.class_names, class_names)
    precision = Precision(config.FP16, world.on_cpu)
    if isinstance(network, paddle.nn.Layer):
        network, _ = precision.decorate(network)
    if arguments.class_names:
        from plsc.data.class_names import read_class_names

        class_names = read_class_names(arguments.class_names, build.class_num(config))
    else:
        class_names = feed.data.class_names or class_names
    return Evaluator.of(config, feed, world, precision, weights_activation=activation), network, class_names


def _check_numbering(config, names, theirs) -> None:
    """Refuse data whose few classes are numbered from 0 for a model of more: its answers mean others."""
    from plsc import build

    wanted = build.class_num(config)
    if names is None or len(names) >= wanted or (theirs is not None and names == theirs[: len(names)]):
        return
    raise ConfigError(
        f"the data's {len(names)} classes ({', '.join(names[:3])}, …) are numbered from 0, but the model has {wanted}: "
        "its classes would be taken for others; evaluate with a list file that has the model's numbers, or all folders"
    )


def _network(row, config, feed, arguments, *, on_cpu: bool):
    """(what maps pictures to logits, its classes' names or None, what it says of its activation or None)."""
    import paddle

    from plsc import build, loading, predictor
    from plsc.engine import tracking
    from plsc.weights import read

    path, part = row.about["weights"], "ema" if arguments.ema else "model"
    resized = row.about["resolution"] if arguments.resolution else None
    if predictor.is_export(path):
        # onnxruntime knows nothing of the device that this process was given
        device = "cpu" if on_cpu else f"auto:{paddle.get_device().partition(':')[2] or 0}"
        exported = predictor.load(path, weights=part, img_size=resized, device=device)
        _warn_of_preprocess(exported.path, exported.preprocess, feed)
        return _exported_network(exported, config, feed), exported.class_names, exported.activation
    source = read(path, part)
    model = build.model(config)
    report = loading.load_pretrained(
        model,
        source,
        strict=True,
        allowed=("pos_embed",) if resized else (),
        class_names=feed.data.class_names,
        position=loading.position_method(config, source),
    )
    for name, how in report.adapted.items():
        tracking.log.info("%s: %s", name, how)
    _warn_of_preprocess(source.path, loading.own_preprocess(source, resized), feed)
    return model, source.class_names, source.activation


def _warn_of_preprocess(path, own, feed):
    from plsc import loading

    loading.warn_of_preprocess(path, own, feed.preprocess, used="the recipe's is measured")


def _exported_network(exported, config, feed):
    """A predictor as a network. Raises CheckpointError where it does not fit the data or the configuration."""
    import paddle

    from plsc import build
    from plsc.engine.evaluator import ExportedNetwork

    theirs, ours = exported.class_names, feed.data.class_names
    if theirs and ours and theirs != ours:
        raise CheckpointError(f"{exported.path}: its classes are not those of the data set, or are in another order")
    network = ExportedNetwork(exported.run)
    height, width, channels = feed.loader.fetcher.fields()["image"].shape
    classes = network(paddle.zeros([1, channels, height, width])).shape[1]
    if classes != build.class_num(config):
        raise CheckpointError(f"{exported.path}: has {classes} classes, Model.class_num is {build.class_num(config)}")
    return network


def _write_details(metrics, class_names, arguments, *, number: int, count: int):
    """What does not fit into a table: accuracy class by class, and the confusion matrix."""
    from plsc.metrics import ConfusionMatrix, PerClassAccuracy

    for metric in metrics:
        if isinstance(metric, PerClassAccuracy) and arguments.per_class:
            path = results.numbered(arguments.per_class, number, count)
            results.write_classes(path, metric.samples, metric.right, class_names)
            print(f"written to {path}")
        if isinstance(metric, ConfusionMatrix) and arguments.confusion:
            path = results.numbered(arguments.confusion, number, count)
            results.write_confusion(path, metric.matrix, class_names)
            print(f"written to {path}")
        elif isinstance(metric, ConfusionMatrix):
            print(results.confusion_text(metric.matrix, class_names))
