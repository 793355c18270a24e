"""Config → components: the one package that knows every room."""

from plsc.build.components import check_members, component
from plsc.build.data import (
    Feed,
    compare_parts,
    dataset,
    feed,
    held_out,
    local_batch_size,
    recipe_preprocess,
    resolve_class_num,
    sampler,
    transforms,
    with_class_num,
)
from plsc.build.learning import (
    activation,
    class_num,
    losses,
    metrics,
    mixing,
    model,
    model_part,
    optimizer,
    schedule,
    task,
    warmup_problem,
)
from plsc.build.length import Length, length_of

__all__ = [
    "Feed",
    "Length",
    "activation",
    "check_members",
    "class_num",
    "compare_parts",
    "component",
    "dataset",
    "feed",
    "held_out",
    "length_of",
    "local_batch_size",
    "losses",
    "metrics",
    "mixing",
    "model",
    "model_part",
    "optimizer",
    "recipe_preprocess",
    "resolve_class_num",
    "sampler",
    "schedule",
    "task",
    "transforms",
    "warmup_problem",
    "with_class_num",
]
