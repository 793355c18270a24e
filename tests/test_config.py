"""One YAML file → Config: inheritance, overrides, places in messages, aliases, notes, refusals, round trips."""

import copy
import dataclasses
import json
import pickle
import re

import pytest
import yaml
from pydantic import BaseModel

from plsc import build
from plsc.config import Component, Config, DataSection, Source, load
from plsc.config.recipes import shipped_recipes
from plsc.errors import ConfigError
from plsc.registry import LOSSES
from tests.helpers import SHARED, tiny_digits, write_config


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Files are written to, and shown relative to, the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(tree: dict, key: str, value) -> dict:
    """Set a dotted key, making sections on the way."""
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    at = tree
    for part in parents:
        if isinstance(at, dict) and at.get(part) is None:
            at[part] = {}
        at = at[part]
    at[last] = value
    return tree


def digits(**changes) -> dict:
    """tiny_digits with dotted keys changed; no part of it is shared with another."""
    tree = json.loads(json.dumps(tiny_digits()))
    for key, value in changes.items():
        put(tree, key, value)
    return tree


def load_tree(here, tree: dict, *overrides):
    return load(str(write_config(here / "run.yaml", tree)), overrides)


def refusal(here, tree, *overrides) -> str:
    """The message that refuses a tree, or the text of a file."""
    path = here / "run.yaml"
    if isinstance(tree, str):
        path.write_text(tree)
    else:
        write_config(path, tree)
    with pytest.raises(ConfigError) as caught:
        load(str(path), overrides)
    return str(caught.value)


def line_of(here, text: str, file: str = "run.yaml", nth: int = 1) -> str:
    """`file:line` of the nth line that contains a text."""
    numbers = [i for i, line in enumerate((here / file).read_text().splitlines(), 1) if text in line]
    return f"{file}:{numbers[nth - 1]}"


# -- files --------------------------------------------------------------------------------


def test_a_complete_file_loads_without_notes(here):
    config = load_tree(here, tiny_digits())
    assert config.Global.seed == 7 and config.Model.arguments["embed_dim"] == 16
    assert [c.name for c in config.DataLoader["Train"].transforms] == ["RandShift", "NormalizeImage", "ToCHWImage"]
    assert config.FP16 is None and config.EMA is None
    assert config.notes == ()


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("Global:\n  seed: 1\nModel: {}\nGlobal:\n  seed: 2\n", "Global", (1, 4)),
        ("Global:\n  seed: 1\n  epochs: 3\n  seed: 2\n", "Global.seed", (2, 4)),
        (
            "Loss:\n  Train:\n    - CELoss:\n        weight: 1\n\n        weight: 2\n",
            "Loss.Train.0.CELoss.weight",
            (4, 6),
        ),
        ("Global: {seed: 1,\n  seed: 2}\n", "Global.seed", (1, 2)),
    ],
    ids=["section", "key", "in-a-list", "flow"],
)
def test_duplicate_keys_name_both_lines(here, text, key, lines):
    message = refusal(here, text)
    assert f": the key {key} is given twice" in message
    assert f"line {lines[0]} and in line {lines[1]}" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Global:\n  seed: [1\nModel: 3\n", "run.yaml:3"),
        ("Global:\n\tseed: 1\n", "run.yaml:2"),
        ("- 1\n", "top level"),
        ("just text\n", "top level"),
        ("Global: 1\n---\nGlobal: 2\n", "run.yaml"),
        ("Global:\n  output_dir: !!python/name:os.system\n", "run.yaml:2"),
        ("Global:\n  output_dir: !!python/object/new:os.system [x]\n", "run.yaml"),
        ("Global:\n  ? [a, b]\n  : 1\n", "run.yaml:2"),
        ("Global:\n  seed: *nowhere\n", "run.yaml:2"),
        ("Global: \x01\n", "run.yaml"),
    ],
    ids=[
        "open-list",
        "tab",
        "list",
        "text",
        "two-documents",
        "tag",
        "call-tag",
        "complex-key",
        "alias",
        "control",
    ],
)
def test_what_is_no_mapping_of_sections_is_refused_with_its_place(here, text, expected):
    assert expected in refusal(here, text)


def test_a_file_that_is_not_text_is_refused(here):
    (here / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"run\.yaml:1: cannot be read"):
        load("run.yaml")


@pytest.mark.parametrize("text", ["Global: &g {x: *g}\n", "Loss: &l\n  Train: *l\n"], ids=["flow", "block"])
def test_an_alias_inside_its_own_anchor_is_refused(here, text):
    assert "run.yaml" in refusal(here, text)


def test_very_deep_nesting_is_refused(here):
    assert "run.yaml" in refusal(here, "Global: " + "[" * 3000 + "]" * 3000 + "\n")


def test_a_merge_key_gives_defaults_that_keys_beside_it_replace(here):
    """`<<: *anchor` is YAML's own inheritance; a key given beside it is not a duplicate."""
    text = yaml.safe_dump(digits(), sort_keys=False, default_flow_style=None)
    first, second = "loader: {num_workers: 0}", "loader: {<<: *l, num_workers: 1}"
    assert text.count(first) == 2
    text = text.replace(first, "loader: &l {num_workers: 0, prefetch_batches: 5}", 1).replace(first, second, 1)
    (here / "run.yaml").write_text(text)
    loader = load("run.yaml").DataLoader["Eval"].loader
    assert (loader.num_workers, loader.prefetch_batches) == (1, 5)


def test_a_merge_of_no_mapping_is_refused_with_its_place(here):
    assert "run.yaml:2" in refusal(here, "Global:\n  <<: 3\n")


# -- recipes by name, _base_ --------------------------------------------------------------


def test_a_shipped_recipe_loads_by_its_bare_name():
    assert load("digits").Model.arguments["img_size"] == 8


def test_a_file_is_preferred_to_a_shipped_recipe_of_its_name(here):
    write_config(here / "digits", digits(**{"Global.seed": 99}))
    assert load("digits").Global.seed == 99


@pytest.mark.parametrize(
    ("name", "expected"), [("digitz", "did you mean digits?"), ("nothing-near", "plsc list recipes")]
)
def test_an_unknown_recipe_suggests(name, expected):
    with pytest.raises(ConfigError) as caught:
        load(name)
    assert name in str(caught.value) and expected in str(caught.value)


def child(here, tree: dict, base: str | list = "base.yaml", name: str = "run.yaml") -> str:
    return str(write_config(here / name, {"_base_": base, **tree}))


def test_base_is_merged_deeply_and_lists_are_replaced(here):
    write_config(here / "base.yaml", tiny_digits())
    changes = {"Global": {"seed": 1}, "Metric": {"Eval": [{"TopkAcc": {"topk": [3]}}]}}
    changes["DataLoader"] = {
        "Train": {"sampler": {"batch_size": 8}, "dataset": {"transform_ops": [{"ToCHWImage": None}]}}
    }
    config = load(child(here, changes))
    assert (config.Global.seed, config.Global.max_train_step) == (1, 10)
    train = config.DataLoader["Train"]
    assert train.sampler.arguments["batch_size"] == 8 and train.sampler.arguments["shuffle"] is True
    assert [c.name for c in train.transforms] == ["ToCHWImage"]
    assert config.Metric["Eval"][0].arguments["topk"] == (3,)
    assert config.Metric["Train"][0].arguments["topk"] == (1, 5)


def test_a_section_whose_name_changes_is_replaced_whole(here):
    base = digits(**{"Optimizer.betas": [0.8, 0.9], "LRScheduler.end_lr": 1e-5})
    write_config(here / "base.yaml", base)
    changes = {
        "Optimizer": {"name": "SGD", "weight_decay": 0.1},
        "LRScheduler": {"learning_rate": 0.5},
        "DataLoader": {"Train": {"dataset": {"name": "ImageFolder", "root": "pictures"}}},
    }
    config = load(child(here, changes))
    assert config.Optimizer.arguments == {"weight_decay": 0.1}
    assert config.optimizer_options.grad_clip is None and config.optimizer_options.no_weight_decay == ()
    assert config.LRScheduler.name == "Cosine" and config.LRScheduler.arguments["end_lr"] == 1e-5
    assert config.DataLoader["Train"].dataset.name == "ImageFolder" and config.DataLoader["Train"].transforms == ()


def test_a_section_whose_name_is_repeated_is_merged(here):
    write_config(here / "base.yaml", digits(**{"Optimizer.betas": [0.8, 0.9]}))
    config = load(child(here, {"Optimizer": {"name": "AdamW", "weight_decay": 0.2}}))
    assert config.Optimizer.arguments["betas"] == (0.8, 0.9) and config.Optimizer.arguments["weight_decay"] == 0.2


def test_bases_chain_and_later_ones_win(here):
    write_config(here / "a.yaml", tiny_digits())
    child(here, {"Global": {"seed": 2, "epochs": 2}}, "a.yaml", "b.yaml")
    write_config(here / "c.yaml", {"Global": {"seed": 3}})
    config = load(child(here, {"Global": {"print_batch_step": 4}}, ["b.yaml", "c.yaml"]))
    g = config.Global
    assert (g.seed, g.epochs, g.print_batch_step, g.max_train_step) == (3, 2, 4, 10)


def test_a_base_may_be_a_shipped_recipe(here):
    config = load(child(here, {"Global": {"epochs": 1}}, "digits"))
    assert config.Global.epochs == 1 and config.Model.arguments["depth"] == 4


def test_a_base_is_found_beside_the_file_that_names_it(here):
    (here / "recipes").mkdir()
    write_config(here / "recipes" / "base.yaml", digits(**{"Global.seed": 21}))
    assert load(child(here / "recipes", {})).Global.seed == 21


def test_a_base_is_not_taken_from_the_working_directory(here):
    """What a file means does not depend on where the command is given."""
    (here / "recipes").mkdir()
    write_config(here / "recipes" / "base.yaml", digits(**{"Global.seed": 21}))
    write_config(here / "base.yaml", digits(**{"Global.seed": 66}))
    assert load(child(here / "recipes", {})).Global.seed == 21


@pytest.mark.parametrize("files", [["run.yaml"], ["run.yaml", "two.yaml"], ["run.yaml", "two.yaml", "three.yaml"]])
def test_bases_in_a_circle_are_refused(here, files):
    for i, name in enumerate(files):
        child(here, {}, files[(i + 1) % len(files)], name)
    with pytest.raises(ConfigError, match="circle") as caught:
        load("run.yaml")
    assert all(name in str(caught.value) for name in files)


def test_one_base_on_two_ways_is_no_circle(here):
    write_config(here / "root.yaml", tiny_digits())
    child(here, {"Global": {"seed": 1}}, "root.yaml", "left.yaml")
    child(here, {"Model": {"depth": 1}}, "root.yaml", "right.yaml")
    assert load(child(here, {}, ["left.yaml", "right.yaml"])).Model.arguments["depth"] == 1


@pytest.mark.parametrize("base", ["gone.yaml", 5, True, {"a": "b"}, [["x"]], [3], ""], ids=str)
def test_a_base_that_cannot_be_is_refused_with_the_place_that_names_it(here, base):
    child(here, {}, base)
    with pytest.raises(ConfigError) as caught:
        load("run.yaml")
    assert "run.yaml:1" in str(caught.value) and "_base_" in str(caught.value)


def test_problems_are_placed_in_the_file_that_wrote_them(here):
    write_config(here / "base.yaml", digits(**{"Model.depht": 3}))
    child(here, {"Global": {"sed": 1}})
    with pytest.raises(ConfigError) as caught:
        load("run.yaml")
    message = str(caught.value)
    assert f"{line_of(here, 'depht', 'base.yaml')}: Model.depht" in message
    assert f"{line_of(here, 'sed:')}: Global.sed" in message


# -- overrides ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("Global.seed=3", lambda c: c.Global.seed == 3),
        ("Global.device = gpu", lambda c: c.Global.device == "gpu"),
        ("Optimizer.grad_clip.clip_norm=2", lambda c: c.optimizer_options.grad_clip.clip_norm == 2.0),
        ("Optimizer.grad_clip=null", lambda c: c.optimizer_options.grad_clip is None),
        ("Optimizer.betas=(0.5, 0.6)", lambda c: c.Optimizer.arguments["betas"] == (0.5, 0.6)),
        ("LRScheduler.learning_rate=3e-4", lambda c: c.LRScheduler.arguments["learning_rate"] == 3e-4),
        ("Loss.Train.0.CELoss.epsilon=0.1", lambda c: c.Loss["Train"][0].arguments["epsilon"] == 0.1),
        (
            "DataLoader.Train.dataset.transform_ops.0.RandShift.pixels=2",
            lambda c: c.DataLoader["Train"].transforms[0].arguments["pixels"] == 2,
        ),
        ("EMA.decay=0.99", lambda c: c.EMA.decay == 0.99),
        ("FP16.GradScaler.max_loss_scaling=2.**20", lambda c: c.FP16.GradScaler.max_loss_scaling == 2.0**20),
        ("DistributedStrategy.recompute={}", lambda c: c.DistributedStrategy.recompute.layerlist_interval == 1),
        ("Global.output_dir=runs/lr=3e-4,wd=0.1", lambda c: c.Global.output_dir == "runs/lr=3e-4,wd=0.1"),
        ("Global.output_dir='12'", lambda c: c.Global.output_dir == "12"),
        ("Metric.Eval.0.TopkAcc.topk=[1, 3]", lambda c: c.Metric["Eval"][0].arguments["topk"] == (1, 3)),
        ("Metric.Eval.0.TopkAcc.topk=(1, 3)", lambda c: c.Metric["Eval"][0].arguments["topk"] == (1, 3)),
        ("Global.eval_during_train=true", lambda c: c.Global.eval_during_train is True),
        ("Global.flags.FLAGS_x=1", lambda c: c.Global.flags == {"FLAGS_x": 1}),
        ("Global.output_dir=2024-01-15", lambda c: c.Global.output_dir == "2024-01-15"),
        ("Global.output_dir=2024-13-45", lambda c: c.Global.output_dir == "2024-13-45"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_overrides(here, override, read):
    assert read(load_tree(here, tiny_digits(), override))


def test_the_last_override_wins(here):
    assert load_tree(here, tiny_digits(), "Global.seed=3", "Global.seed=4").Global.seed == 4


def test_an_override_fills_an_item_without_arguments(here):
    tree = digits(**{"Loss.Train": [{"CELoss": None}]})
    config = load_tree(here, tree, "Loss.Train.0.CELoss.weight=0.5")
    assert config.Loss["Train"][0].arguments["weight"] == 0.5


def test_overrides_go_over_bases(here):
    write_config(here / "base.yaml", tiny_digits())
    assert load(child(here, {"Global": {"seed": 1}}), ["Global.seed=9"]).Global.seed == 9


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("Global.seed", "Section.key=value"),
        ("=3", "Section.key=value"),
        ("Global..seed=3", "Section.key=value"),
        (".seed=3", "Section.key=value"),
        ("Global.=3", "Section.key=value"),
        ("", "Section.key=value"),
        ("Loss.Train.7.CELoss=null", "index from 0 to 0"),
        ("Loss.Train.-1.CELoss=null", "index from 0 to 0"),
        ("Loss.Train.CELoss.weight=1", "index from 0 to 0"),
        ("Loss.Train.².CELoss=1", "index from 0 to 0"),
        ("Global.seed.deeper=1", "has no keys"),
    ],
)
def test_bad_forms_of_overrides_are_refused(here, override, expected):
    message = refusal(here, tiny_digits(), override)
    assert f"-o {override}" in message and expected in message


def test_problems_of_overrides_are_placed_at_them(here):
    message = refusal(here, tiny_digits(), "Global.sed=3", "Optimizer.grad_clip={clip_nrm: 1}")
    assert "-o Global.sed=3: Global.sed" in message
    assert "-o Optimizer.grad_clip={clip_nrm: 1}: Optimizer.grad_clip.clip_nrm" in message


def test_an_override_of_a_whole_section_hides_the_lines_below_it(here):
    message = refusal(here, tiny_digits(), "Optimizer={name: AdamW, betas: 3}")
    assert "-o Optimizer={name: AdamW, betas: 3}: Optimizer.betas" in message and "run.yaml" not in message


# -- what messages say --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("Globl", {}, "Global"),
        ("Global.epocs", 3, "epochs"),
        ("Global.outputDir", "x", "output_dir"),
        ("Model.embed_dimm", 3, "embed_dim"),
        ("Model.name", "ViT_base_patch16_244", "ViT_base_patch16_224"),
        ("Optimizer.name", "adamw", "AdamW"),
        ("Optimizer.weigth_decay", 0.1, "weight_decay"),
        ("Optimizer.layerdecay", 0.1, "layer_decay"),
        ("LRScheduler.warmup_stepz", 3, "warmup_steps"),
        ("DataLoader.Trian", {}, "Train"),
        ("DataLoader.Train.datasets", {}, "dataset"),
        ("Loss.Trian", [], "Train"),
        ("Metric.Evl", [], "Eval"),
        ("Global.eval_unit", "epok", "epoch"),
        ("FP16.dtype", "bfloat", "bfloat16"),
        ("DataLoader.Train.dataset.split", "tran", "train"),
    ],
)
def test_the_nearest_name_is_suggested(here, key, value, near):
    message = refusal(here, digits(**{key: value}))
    assert key in message and f"did you mean {near}?" in message


def test_where_nothing_is_near_the_names_are_listed(here):
    message = refusal(here, digits(**{"EMA.xyzzy": 1, "Loss.Train": [{"Xyzzy": {}}], "Xyzzy": {}}))
    assert "it accepts decay, thres_steps, ema_eval, eval_start_epoch" in message
    assert "CELoss" in message and "ViTCELoss" in message
    assert "DistributedStrategy" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("Global.epochs", "many", "expected a whole number or null, got 'many'"),
        ("Global.epochs", 2.5, "expected a whole number or null, got 2.5"),
        ("Global.epochs", True, "expected a whole number or null, got True"),
        ("Global.epochs", 0, "greater than or equal to 1"),
        ("Global.finetune", "yes please", "expected true or false"),
        ("Global.output_dir", 3, "expected a text, got 3"),
        ("Global.eval_unit", "day", "expected one of epoch, step"),
        ("Optimizer.betas", "(0.9, 0.99, 0.999)", "expected 2 values (a number, a number)"),
        ("Optimizer.betas", 0.9, "expected 2 values (a number, a number)"),
        ("Optimizer.grad_clip", 1.0, "expected keys and values, got 1.0"),
        ("Optimizer.freeze", "head", "expected a list of texts"),
        ("Metric.Train.0.TopkAcc.topk", "five", "a whole number or a list of whole numbers"),
        ("Loss.Train", {"CELoss": {}}, "expected a list of losses"),
        ("EMA.decay", 1.5, "less than 1"),
        ("FP16.GradScaler.init_loss_scaling", "inf", "expected a number"),
        ("DataLoader.Train.loader.num_workers", -1, "greater than or equal to 0"),
        ("LRScheduler.learning_rate", [1], "expected a number, got [1]"),
    ],
)
def test_wrong_values_say_what_was_expected(here, key, value, expected):
    message = refusal(here, digits(**{key: value}))
    assert f"{key}: " in message and expected in message


def test_the_line_of_a_problem_is_that_of_its_key(here):
    message = refusal(here, digits(**{"DataLoader.Eval.dataset.splt": "test"}))
    assert f"{line_of(here, 'splt')}: DataLoader.Eval.dataset.splt" in message


def test_a_missing_key_is_placed_at_its_section(here):
    tree = tiny_digits()
    del tree["LRScheduler"]["learning_rate"]
    message = refusal(here, tree)
    assert f"{line_of(here, 'LRScheduler')}: LRScheduler.learning_rate: is missing" in message


def test_several_problems_are_reported_together_each_on_a_line_with_its_place(here):
    tree = digits(**{"Global.epocs": 3, "Model.depth": "deep", "Loss.Train": [{"CELos": {}}], "EMA.decay": 2})
    message = refusal(here, tree, "Optimizer.betas=3")
    head, *rows = message.splitlines()
    assert head == "the configuration has 5 problems:"
    assert len(rows) == 5
    for place, key in [
        (line_of(here, "epocs"), "Global.epocs"),
        (line_of(here, "deep"), "Model.depth"),
        (line_of(here, "CELos:"), "Loss.Train.0.CELos"),
        (line_of(here, "decay: 2"), "EMA.decay"),
        ("-o Optimizer.betas=3", "Optimizer.betas"),
    ]:
        assert sum(row.startswith(f"  {place}: {key}: ") for row in rows) == 1, (place, key, message)


@pytest.mark.parametrize("section", ["Model", "Loss", "LRScheduler", "Optimizer", "DataLoader"])
@pytest.mark.parametrize("value", ["absent", None, {}, 3, "text", []], ids=repr)
def test_a_required_section_must_be_there_and_hold_something(here, section, value):
    tree = tiny_digits()
    if value == "absent":
        del tree[section]
    else:
        tree[section] = value
    assert re.search(rf"\b{section}\b.*: ", refusal(here, tree))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("Loss.Train", "CELosss"),
        ("Metric.Eval", "TopkAccc"),
        ("DataLoader.Train.dataset.transform_ops", "ToCHWImagee"),
    ],
)
def test_an_unknown_name_without_arguments_is_a_problem_like_any_other(here, key, name):
    message = refusal(here, digits(**{key: [name]}))
    assert f"{key}.0" in message and f"did you mean {name[:-1]}?" in message


def test_a_name_without_arguments_is_accepted_in_lists(here):
    config = load_tree(here, digits(**{"Loss.Train": ["CELoss"]}))
    assert config.Loss["Train"][0].name == "CELoss"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"Global.epochs": None, "Global.max_train_step": None}, "Global.epochs"),
        ({"Global.to_static": True, "DistributedStrategy.recompute": {}}, "Global.to_static"),
        ({"Global.accum_steps": 3}, "DataLoader.Train.sampler.batch_size"),
        ({"DataLoader.Train.sampler.batch_size": None}, "DataLoader.Train.sampler.batch_size"),
        ({"DataLoader.Eval.sampler.batch_size": None}, "DataLoader.Eval.sampler.batch_size"),
        ({"DataLoader.Eval": None, "Global.eval_during_train": True}, "Global.eval_during_train"),
        ({"DataLoader.Eval": None, "EMA.ema_eval": True}, "EMA.ema_eval"),
        ({"FP16.master_weight": True, "Optimizer.use_master_param": False}, "Optimizer.use_master_param"),
        ({"FP16.GradScaler": {"max_loss_scaling": 2.0, "init_loss_scaling": 4.0}}, "FP16.GradScaler.init_loss_scaling"),
        ({"Loss.Train": []}, "Loss.Train"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(here, changes, key):
    assert f"{key}: " in refusal(here, digits(**changes))


# -- aliases, text that is a number -------------------------------------------------------


def test_amp_is_another_name_of_fp16(here):
    config = load_tree(here, digits(AMP={"level": "O1", "dtype": "bfloat16"}))
    assert (config.FP16.level, config.FP16.dtype) == ("O1", "bfloat16")


def test_amp_beside_fp16_is_refused(here):
    message = refusal(here, digits(AMP={"level": "O1"}, FP16={"level": "O1"}))
    assert f"{line_of(here, 'AMP')}: AMP: " in message and "FP16" in message


def test_problems_below_amp_keep_their_line(here):
    message = refusal(here, digits(AMP={"levl": "O1"}))
    assert line_of(here, "levl") in message and "did you mean level?" in message


def test_eps_is_another_name_of_epsilon(here):
    assert load_tree(here, digits(**{"Optimizer.eps": "1e-6"})).Optimizer.arguments["epsilon"] == 1e-6
    message = refusal(here, digits(**{"Optimizer.eps": 1e-6, "Optimizer.epsilon": 1e-6}))
    assert "Optimizer.eps: is another name of epsilon" in message


def test_epsilon_of_adamw_is_used_and_shown(here):
    """PLSC dropped the key and ran at 1e-8; the design promises one line that says so."""
    config = load_tree(here, digits(**{"Optimizer.epsilon": "1e-6"}))
    assert config.Optimizer.arguments["epsilon"] == 1e-6
    assert [note for note in config.notes if "Optimizer.epsilon" in note and "1e-8" in note]


def test_transform_is_another_name_of_transform_ops(here):
    tree = tiny_digits()
    dataset = tree["DataLoader"]["Train"]["dataset"]
    dataset["transform"] = dataset.pop("transform_ops")
    assert len(load_tree(here, tree).DataLoader["Train"].transforms) == 3
    dataset["transform_ops"] = []
    assert "is another name of transform_ops" in refusal(here, tree)


def test_registered_aliases_load_under_the_main_name(here):
    config = load_tree(here, digits(**{"Model.name": "ViT", "DataLoader.Train.sampler.name": "BatchSampler"}))
    assert config.Model.name == "VisionTransformer"
    assert config.DataLoader["Train"].sampler.name == "DistributedBatchSampler"


def test_yaml_texts_that_are_numbers(here):
    """YAML reads 1e-3, 2.**32, 1.0/255.0 and (0.9, 0.999) as text."""
    base = yaml.safe_dump({k: v for k, v in tiny_digits().items() if k not in ("LRScheduler", "Optimizer")})
    (here / "run.yaml").write_text(
        base
        + """
LRScheduler:
  name: Step
  boundaries: [10, 20]
  values: [1e-3, 1e-4, 1e-5]
Optimizer:
  name: AdamW
  betas: (0.9, 0.95)
  epsilon: 1e-8
FP16:
  GradScaler:
    max_loss_scaling: 2.**32
    incr_ratio: 2
Export:
  input_shape: [None, 3, 224, 224]
"""
    )
    config = load("run.yaml", ["DataLoader.Train.dataset.transform_ops.1.NormalizeImage.scale=1.0/255.0"])
    assert config.LRScheduler.arguments["values"] == (1e-3, 1e-4, 1e-5)
    assert config.Optimizer.arguments["betas"] == (0.9, 0.95)
    assert config.FP16.GradScaler.max_loss_scaling == 2.0**32
    assert config.Export.input_shape == (None, 3, 224, 224)
    assert config.DataLoader["Train"].transforms[1].arguments["scale"] == 1.0 / 255.0


def test_a_date_is_a_text_and_may_name_a_folder(here):
    """YAML reads 2024-01-15 as a date, which no key asks for, and 2024-13-45 not at all."""
    for name in ("2024-01-15", "2024-13-45"):
        text = yaml.safe_dump(digits(**{"Global.output_dir": "PLACE"})).replace("PLACE", name)
        (here / "run.yaml").write_text(text)
        assert load("run.yaml").Global.output_dir == name


def test_texts_stay_texts_where_texts_are_asked_for(here):
    tree = digits(**{"Global.output_dir": "3e-3", "Global.pretrained_model": "1.0/255.0"})
    g = load_tree(here, tree).Global
    assert (g.output_dir, g.pretrained_model) == ("3e-3", str(here / "1.0/255.0"))


def test_a_number_too_large_for_a_float_is_a_problem_not_a_crash(here):
    assert "Optimizer.weight_decay: " in refusal(here, tiny_digits(), "Optimizer.weight_decay=10**400")


def test_nothing_in_a_configuration_is_executed(here):
    text = "__import__('pathlib').Path('made').touch()"
    for key in ("Global.seed", "Optimizer.betas", "Metric.Train.0.TopkAcc.topk", "Model.img_size"):
        refusal(here, tiny_digits(), f"{key}={text}")
    load_tree(here, tiny_digits(), f"Global.output_dir={text}")
    assert not (here / "made").exists()


# -- PLSC's keys: without effect, or not offered ------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Global.train_epoch_func", "default_train_one_epoch"),
        ("Global.eval_func", "default_eval"),
        ("Global.distributed", True),
        ("Global.rank", 0),
        ("Global.world_size", 8),
        ("DataLoader.Train.loader.use_shared_memory", True),
        ("DataLoader.Eval.loader.use_shared_memory", False),
        ("DataLoader.Eval.loader.collate_fn", "default_collate_fn"),
        ("Optimizer.exp_avg_force_fp32", True),
        ("DataLoader.Train.dataset.transform_ops.1.NormalizeImage.output_fp16", True),
        ("DataLoader.Train.dataset.transform_ops.1.NormalizeImage.channel_num", 4),
        ("Model.norm_layer", "nn.LayerNorm"),
    ],
)
def test_keys_without_effect_are_noted_once_with_place_and_reason(here, key, value):
    config = load_tree(here, digits(**{key: value}))
    [note] = config.notes
    assert note.startswith(f"{line_of(here, key.rpartition('.')[2] + ':')}: {key}: accepted, without effect: ")
    assert not note.endswith(": ")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("Global.use_dali", True, "DALI"),
        ("Global.task_type", "recognition", "classification only"),
        ("Optimizer.lr_func", "lambda x: x", "no functions"),
        ("Model.num_classes", 10, "class_num"),
    ],
)
def test_keys_that_are_not_offered_are_refused_with_the_reason(here, key, value, reason):
    message = refusal(here, digits(**{key: value}))
    assert f"{line_of(here, key.rpartition('.')[2] + ':')}: {key}: not offered: " in message
    assert reason in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Global.use_dali", False),
        ("Global.task_type", "classification"),
        ("DistributedStrategy.data_sharding", False),
        ("Optimizer.lr_func", None),
    ],
)
def test_keys_that_are_not_offered_are_accepted_at_their_harmless_value(here, key, value):
    load_tree(here, digits(**{key: value}))


SWIN, CONVNEXT, FACE = "only plain Vision Transformers", "only Vision Transformers", "face recognition is not offered"


@pytest.mark.parametrize(
    ("key", "name", "reason"),
    [
        ("Model.name", "swin_tiny_patch4_window7_224", SWIN),
        ("Model.name", "swin_base_patch4_window12_384", SWIN),
        ("Model.name", "swin_s3_tiny_224", SWIN),
        ("Model.name", "ConvNeXt", CONVNEXT),
        ("Model.name", "convnext_tiny", CONVNEXT),
        ("Model.name", "convnext_xlarge", CONVNEXT),
        ("Model.name", "IResNet50", FACE),
        ("Model.name", "MobileFaceNet", FACE),
        ("Loss.Train", "MarginLoss", FACE),
        ("Metric.Eval", "LFWAcc", FACE),
        ("DataLoader.Eval.dataset.name", "FaceVerificationDataset", FACE),
    ],
)
def test_names_of_plsc_that_are_not_offered_are_refused_with_the_reason(here, key, name, reason):
    value = [{name: {}}] if key in ("Loss.Train", "Metric.Eval") else name
    message = refusal(here, digits(**{key: value}))
    assert name in message and "not part of plsc" in message and reason in message
    assert "did you mean" not in message


@pytest.mark.shared
@pytest.mark.parametrize("path", sorted((SHARED / "compat" / "plsc_vit").glob("*.yaml")), ids=lambda p: p.stem)
def test_vit_files_of_plsc_load_unedited(path):
    config = load(str(path))
    assert config.Model.name.startswith("ViT_") and config.FP16.dtype == "float16"
    assert any("use_shared_memory" in note for note in config.notes)


# -- round trips --------------------------------------------------------------------------


def everything() -> dict:
    """A configuration in which every section is given."""
    return digits(
        **{
            "FP16": {"level": "O1", "dtype": "bfloat16", "GradScaler": {"no_unscale_list": ["head"]}},
            "EMA": {"decay": 0.99, "ema_eval": True},
            "DistributedStrategy": {"recompute": {"layerlist_interval": 2}},
            "Export": {"export_type": "onnx", "input_shape": [None, 1, 8, 8]},
            "Optimizer.layer_decay": 0.75,
            "Optimizer.freeze": ["patch_embed.*"],
            "Optimizer.epsilon": "1e-8",
            "Global.flags": {"FLAGS_x": 1.5, "FLAGS_y": True, "FLAGS_z": "3e-3"},
            "Global.pretrained_model": "null-ish: text",
            "Global.output_dir": "07",
            "Model.img_size": [8, 8],
            "Model.layer_scale": "1e-5",
        }
    )


def reloaded(here, config) -> dict:
    (here / "again.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    again = load(str(here / "again.yaml"))
    assert not [note for note in again.notes if "without effect" in note]
    return again.to_dict()


@pytest.mark.parametrize("tree", [tiny_digits(), everything()], ids=["tiny", "every-section"])
def test_a_resolved_configuration_loads_to_itself(here, tree):
    config = load_tree(here, tree)
    assert reloaded(here, config) == config.to_dict()


def test_a_resolved_configuration_keeps_what_was_asked_for(here):
    out = load_tree(here, everything(), "Global.seed=11").to_dict()
    assert out["Global"]["seed"] == 11 and out["Global"]["output_dir"] == str(here / "07")
    assert out["FP16"]["level"] == "O1" and out["EMA"]["decay"] == 0.99
    assert out["Optimizer"]["layer_decay"] == 0.75 and out["Optimizer"]["epsilon"] == 1e-8
    assert out["DataLoader"]["Train"]["dataset"]["transform_ops"][0] == {"RandShift": {"pixels": 1}}


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_to_themselves(here, name):
    config = load(name)
    assert reloaded(here, config) == config.to_dict()


@pytest.mark.shared
@pytest.mark.parametrize("path", sorted((SHARED / "compat" / "plsc_vit").glob("*.yaml")), ids=lambda p: p.stem)
def test_files_of_plsc_load_to_themselves(here, path):
    config = load(str(path))
    assert reloaded(here, config) == config.to_dict()


# -- dicts, and copies with changes -------------------------------------------------------


def test_a_dict_is_a_configuration(here):
    tree = digits(**{"Global.output_dir": here / "run"})  # paths become texts
    config = load(tree, {"Global.seed": 5, "Loss.Train.0.CELoss.epsilon": 0.1, "Optimizer.betas": (0.8, 0.9)})
    assert config.Global.seed == 5 and config.Global.output_dir == str(here / "run")
    assert config.Loss["Train"][0].arguments["epsilon"] == 0.1
    assert config.Optimizer.arguments["betas"] == (0.8, 0.9)
    assert tree["Global"]["seed"] == 7  # what is given stays as it is


def test_problems_of_a_dict_and_its_overrides_are_placed(here):
    with pytest.raises(ConfigError) as caught:
        load(digits(**{"Global.sed": 3}), {"Optimizer.weigth_decay": 1})
    assert "in the given dict: Global.sed: " in str(caught.value)
    assert "override Optimizer.weigth_decay=1: Optimizer.weigth_decay: " in str(caught.value)


def test_a_dict_may_have_a_base(here):
    write_config(here / "base.yaml", digits(**{"Global.seed": 21}))
    assert load({"_base_": "base.yaml", "Global": {"epochs": 2}}).Global.seed == 21


@pytest.mark.parametrize("overrides", ["Global.seed=3", {3: 1}, {"": 1}, {"Global..seed": 1}], ids=repr)
def test_overrides_of_another_form_are_refused(overrides):
    with pytest.raises(ConfigError, match="override"):
        load(tiny_digits(), overrides)


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("Global.seed", 3, lambda c: c.Global.seed),
        ("Model.img_size", 16, lambda c: c.Model.arguments["img_size"]),
        ("DataLoader.Train.sampler.batch_size", None, lambda c: c.DataLoader["Train"].sampler.arguments["batch_size"]),
        ("DataLoader.Train.loader.num_workers", 2, lambda c: c.DataLoader["Train"].loader.num_workers),
        (
            "DataLoader.Eval.dataset.transform_ops.0.NormalizeImage.scale",
            2.0,
            lambda c: c.DataLoader["Eval"].transforms[0].arguments["scale"],
        ),
        ("Loss.Train.0.CELoss.epsilon", 0.1, lambda c: c.Loss["Train"][0].arguments["epsilon"]),
        ("Optimizer.weight_decay", 0.5, lambda c: c.Optimizer.arguments["weight_decay"]),
        ("Optimizer.layer_decay", 0.5, lambda c: c.optimizer_options.layer_decay),
        ("Optimizer.grad_clip.clip_norm", 3.0, lambda c: c.optimizer_options.grad_clip.clip_norm),
        ("FP16", None, lambda c: c.FP16),
    ],
)
def test_a_copy_has_keys_replaced_and_the_original_stays(here, key, value, read):
    config = load_tree(here, digits(**{"FP16.level": "O1"}))
    before = config.to_dict()
    changed = config.replace({key: value, "Global.epochs": 9})
    assert read(changed) == value and changed.Global.epochs == 9
    assert config.to_dict() == before and read(config) != value


@pytest.mark.parametrize(
    "key", ["Globl.seed", "Global.sed", "Model.dep", "Loss.Train.7.CELoss.weight", "DataLoader.Test.loader.num_workers"]
)
def test_replacing_a_key_that_is_not_there_is_an_error(here, key):
    with pytest.raises(KeyError, match="there is no"):
        load_tree(here, tiny_digits()).replace({key: 1})


def test_a_base_of_another_component_says_what_is_not_inherited(here):
    write_config(here / "base.yaml", digits(**{"Optimizer.betas": [0.8, 0.9]}))
    changes = {
        "Optimizer": {"name": "SGD", "weight_decay": 0.1},
        "DataLoader": {"Train": {"dataset": {"name": "ImageFolder", "root": "pictures"}}},
    }
    notes = load(child(here, changes)).notes
    [dataset] = [note for note in notes if "DataLoader.Train.dataset.name" in note]
    assert dataset.startswith(f"{line_of(here, 'name: ImageFolder')}: ")
    assert "changes from Digits to ImageFolder" in dataset and dataset.endswith("dropped: split, transform_ops")
    [optimizer] = [note for note in notes if "Optimizer.name" in note]
    assert optimizer.endswith("keys of base.yaml:29 are dropped: no_weight_decay, grad_clip, betas")


# -- nothing in a configuration changes ----------------------------------------------------


def changes(value, place="config"):
    """(where, what would change it) for everything that a value holds."""
    if isinstance(value, (Config, Component, DataSection, Source)):
        inner = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, BaseModel):
        inner = {name: getattr(value, name) for name in type(value).model_fields}
    elif isinstance(value, dict):
        yield from ((f"{place}.{key}", lambda key=key: value.__setitem__(key, 1)) for key in value)
        yield place, lambda: value.update(new=1)
        yield place, value.clear
        inner = value
    else:
        assert not isinstance(value, (list, set)), place
        for i, item in enumerate(value if isinstance(value, tuple) else ()):
            yield from changes(item, f"{place}.{i}")
        return
    if not isinstance(value, dict):
        yield from ((f"{place}.{name}", lambda name=name: setattr(value, name, 1)) for name in inner)
    for name, item in inner.items():
        yield from changes(item, f"{place}.{name}")


def test_nothing_in_a_configuration_can_be_changed(here):
    config = load_tree(here, everything())
    before = config.to_dict()
    attempts = list(changes(config))
    assert len(attempts) > 300
    for place, change in attempts:
        with pytest.raises((TypeError, ValueError, dataclasses.FrozenInstanceError)):
            change()
            pytest.fail(f"{place} was changed")
    assert config.to_dict() == before


def test_what_is_replaced_cannot_be_changed_either(here):
    topk = [1, 3]
    metric = Component("TopkAcc", {"topk": topk})
    config = load_tree(here, tiny_digits()).replace({"Metric.Eval": [metric], "Global.flags": {"FLAGS_x": [1]}})
    topk.append(5)
    assert config.Metric["Eval"][0].arguments["topk"] == (1, 3) and config.Global.flags == {"FLAGS_x": (1,)}
    with pytest.raises(TypeError, match=r"config\.replace"):
        config.Global.flags["FLAGS_x"] = 2


def test_a_configuration_can_be_copied_and_pickled(here):
    config = load_tree(here, everything())
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other.to_dict() == config.to_dict()
        with pytest.raises(TypeError):
            other.Model.arguments["depth"] = 9


def test_a_factory_gets_lists_and_dicts_of_its_own(here):
    """As annotated, or lists where nothing is; what it does to them does not reach the configuration."""
    entries = dict(LOSSES._entries)
    received = {}

    @LOSSES.register()
    class Greedy:
        weight, activation = 1.0, None

        def __init__(self, sizes: list[int], pair: tuple[int, int], names: dict, anything=()):
            received.update(sizes=sizes, pair=pair, names=names, anything=anything)
            sizes.append(9)
            names["new"] = 9

        def __call__(self, outputs, targets):
            return outputs.mean(axis=-1)

    try:
        arguments = {"sizes": [1, 2], "pair": [3, 4], "names": {"a": [5]}, "anything": [[6], 7]}
        config = load_tree(here, digits(**{"Loss.Train": [{"Greedy": arguments}]}))
        for _ in range(2):
            build.losses(config, "Train")
            assert received == {"sizes": [1, 2, 9], "pair": (3, 4), "names": {"a": [5], "new": 9}, "anything": [[6], 7]}
    finally:
        LOSSES._entries = entries


# -- tasks, and PLSC's switches ------------------------------------------------------------


def test_the_task_is_classification_where_none_is_given(here):
    assert load_tree(here, tiny_digits()).Task.name == "Classification"
    message = refusal(here, digits(**{"Task": {"name": "Clasification"}}))
    assert "Task.name: " in message and "did you mean Classification?" in message


@pytest.mark.parametrize(
    ("changes", "loggers"),
    [
        ({}, ()),
        ({"Global.use_visualdl": False}, ()),
        ({"Global.use_visualdl": True}, ("visualdl",)),
        ({"Global.use_visualdl": True, "Global.loggers": ["tensorboard"]}, ("tensorboard", "visualdl")),
        ({"Global.use_visualdl": True, "Global.loggers": ["visualdl"]}, ("visualdl",)),
        ({"Global.use_visualdl": None, "Global.loggers": ["wandb"]}, ("wandb",)),
    ],
)
def test_use_visualdl_is_plscs_name_of_a_logger(here, changes, loggers):
    config = load_tree(here, digits(**changes))
    assert config.Global.loggers == loggers
    assert load(config.to_dict()).Global.loggers == loggers


def test_what_is_no_switch_or_no_logger_is_refused(here):
    message = refusal(here, digits(**{"Global.use_visualdl": "maybe", "Global.loggers": ["tensorbord"]}))
    assert f"{line_of(here, 'maybe')}: Global.use_visualdl: expected true or false, got 'maybe'" in message
    assert "Global.loggers: expected a list of one of visualdl, tensorboard, wandb" in message


def test_use_master_param_is_plscs_name_of_master_weight(here):
    config = load_tree(here, digits(**{"FP16": {"level": "O2"}, "Optimizer.use_master_param": False}))
    assert config.FP16.master_weight is False
    config = load_tree(here, digits(**{"FP16": {"level": "O2"}}), "Optimizer.use_master_param=False")
    assert config.FP16.master_weight is False
    assert load_tree(here, digits(**{"Optimizer.use_master_param": False})).FP16 is None
