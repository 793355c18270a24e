"""plsc: Vision Transformers on PaddlePaddle, from one YAML file or from Python.

>>> import plsc
>>> config = plsc.load_config("digits", overrides={"Global.epochs": 2, "Global.output_dir": "output/two"})
>>> result = plsc.train(config)
>>> plsc.load_predictor(result.run_directory).predict(["seven.png"])

Importing plsc is fast and imports no Paddle; that happens when a name that needs it is first used. docs/python.md
is the guide, docs/api.md the reference.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "3.0.0"

if TYPE_CHECKING:
    from plsc.api import load_config as load_config
    from plsc.config import Config as Config
    from plsc.convert import convert_weights as convert_weights
    from plsc.data.datasets.base import Dataset as Dataset
    from plsc.data.datasets.base import Sample as Sample
    from plsc.data.preprocess import Preprocess as Preprocess
    from plsc.data.sampler import Draw as Draw
    from plsc.data.sampler import Sampler as Sampler
    from plsc.data.transforms.base import Transform as Transform
    from plsc.doctor import Diagnosis as Diagnosis
    from plsc.doctor import diagnose as diagnose
    from plsc.engine.callbacks import Callback as Callback
    from plsc.engine.evaluation import Evaluation as Evaluation
    from plsc.engine.evaluation import evaluate as evaluate
    from plsc.engine.evaluation import evaluate_all as evaluate_all
    from plsc.engine.run import TrainResult as TrainResult
    from plsc.errors import CheckpointError as CheckpointError
    from plsc.errors import ConfigError as ConfigError
    from plsc.errors import DataError as DataError
    from plsc.errors import DeviceError as DeviceError
    from plsc.errors import PlscError as PlscError
    from plsc.errors import TrainingError as TrainingError
    from plsc.export import export_model as export_model
    from plsc.loading import LoadedModel as LoadedModel
    from plsc.loading import create_model as create_model
    from plsc.loading import load_model as load_model
    from plsc.losses.base import Loss as Loss
    from plsc.metrics.base import Metric as Metric
    from plsc.model_card import ModelCard as ModelCard
    from plsc.models import list_models as list_models
    from plsc.models.base import Model as Model
    from plsc.optim.base import Schedule as Schedule
    from plsc.planning import Memory as Memory
    from plsc.planning import Plan as Plan
    from plsc.planning import plan as plan
    from plsc.predictor import Predictor as Predictor
    from plsc.predictor import load_predictor as load_predictor
    from plsc.registry import (
        BATCH_TRANSFORMS,
        DATASETS,
        LOSSES,
        METRICS,
        MODELS,
        OPTIMIZERS,
        SAMPLERS,
        SCHEDULERS,
        TASKS,
        TRANSFORMS,
    )
    from plsc.reporting import report as report
    from plsc.runs.compare import Comparison as Comparison
    from plsc.runs.compare import RunSummary as RunSummary
    from plsc.runs.compare import compare as compare
    from plsc.step_timing import StepTiming as StepTiming
    from plsc.step_timing import benchmark_training as benchmark_training
    from plsc.sweeps import Standing as Standing
    from plsc.sweeps import SweepResult as SweepResult
    from plsc.sweeps import sweep as sweep
    from plsc.targets import Targets as Targets
    from plsc.tasks.base import Task as Task
    from plsc.tasks.base import TaskOutput as TaskOutput
    from plsc.timing import Timing as Timing
    from plsc.timing import benchmark as benchmark
    from plsc.training import train as train

    register_model = MODELS.register
    register_dataset = DATASETS.register
    register_sampler = SAMPLERS.register
    register_transform = TRANSFORMS.register
    register_batch_transform = BATCH_TRANSFORMS.register
    register_loss = LOSSES.register
    register_metric = METRICS.register
    register_scheduler = SCHEDULERS.register
    register_optimizer = OPTIMIZERS.register
    register_task = TASKS.register

# public name → where it is defined, as module:attribute
_DEFINED_IN = {
    # what the commands do
    "load_config": "plsc.api:load_config",
    "train": "plsc.training:train",
    "evaluate": "plsc.engine.evaluation:evaluate",
    "evaluate_all": "plsc.engine.evaluation:evaluate_all",
    "load_predictor": "plsc.predictor:load_predictor",
    "export_model": "plsc.export:export_model",
    "convert_weights": "plsc.convert:convert_weights",
    "benchmark": "plsc.timing:benchmark",
    "benchmark_training": "plsc.step_timing:benchmark_training",
    "compare": "plsc.runs.compare:compare",
    "report": "plsc.reporting.reporter:report",
    "sweep": "plsc.sweeps.sweeper:sweep",
    "plan": "plsc.planning.planner:plan",
    "diagnose": "plsc.doctor.diagnosis:diagnose",
    # models
    "create_model": "plsc.loading:create_model",
    "list_models": "plsc.models:list_models",
    "load_model": "plsc.loading:load_model",
    # adding components
    "register_model": "plsc.registry:MODELS.register",
    "register_dataset": "plsc.registry:DATASETS.register",
    "register_sampler": "plsc.registry:SAMPLERS.register",
    "register_transform": "plsc.registry:TRANSFORMS.register",
    "register_batch_transform": "plsc.registry:BATCH_TRANSFORMS.register",
    "register_loss": "plsc.registry:LOSSES.register",
    "register_metric": "plsc.registry:METRICS.register",
    "register_scheduler": "plsc.registry:SCHEDULERS.register",
    "register_optimizer": "plsc.registry:OPTIMIZERS.register",
    "register_task": "plsc.registry:TASKS.register",
    # what these take and return
    "Config": "plsc.config:Config",
    "LoadedModel": "plsc.loading:LoadedModel",
    "ModelCard": "plsc.model_card:ModelCard",
    "Predictor": "plsc.predictor:Predictor",
    "Preprocess": "plsc.data.preprocess:Preprocess",
    "TrainResult": "plsc.engine.run:TrainResult",
    "Evaluation": "plsc.engine.evaluation:Evaluation",
    "Timing": "plsc.timing:Timing",
    "StepTiming": "plsc.step_timing:StepTiming",
    "Comparison": "plsc.runs.compare:Comparison",
    "RunSummary": "plsc.runs.compare:RunSummary",
    "SweepResult": "plsc.sweeps.sweeper:SweepResult",
    "Standing": "plsc.sweeps.sweeper:Standing",
    "Plan": "plsc.planning.planner:Plan",
    "Memory": "plsc.planning.memory:Memory",
    "Diagnosis": "plsc.doctor.diagnosis:Diagnosis",
    "Callback": "plsc.engine.callbacks:Callback",
    "Sample": "plsc.data.datasets.base:Sample",
    "Draw": "plsc.data.sampler:Draw",
    "Targets": "plsc.targets:Targets",
    "TaskOutput": "plsc.tasks.base:TaskOutput",
    # what a component offers
    "Dataset": "plsc.data.datasets.base:Dataset",
    "Sampler": "plsc.data.sampler:Sampler",
    "Transform": "plsc.data.transforms.base:Transform",
    "Loss": "plsc.losses.base:Loss",
    "Metric": "plsc.metrics.base:Metric",
    "Schedule": "plsc.optim.base:Schedule",
    "Task": "plsc.tasks.base:Task",
    "Model": "plsc.models.base:Model",
    # errors
    "PlscError": "plsc.errors:PlscError",
    "ConfigError": "plsc.errors:ConfigError",
    "DataError": "plsc.errors:DataError",
    "CheckpointError": "plsc.errors:CheckpointError",
    "DeviceError": "plsc.errors:DeviceError",
    "TrainingError": "plsc.errors:TrainingError",
}
# names whose modules do without Paddle, or prepare the process for it by themselves
_WITHOUT_PADDLE = {
    "load_config",
    "train",
    "evaluate",
    "evaluate_all",
    "convert_weights",
    "list_models",
    "Callback",
    "benchmark",
    "benchmark_training",
    "compare",
    "Comparison",
    "RunSummary",
    "sweep",
    "SweepResult",
    "Standing",
    "Config",
    "TrainResult",
    "Evaluation",
    "Timing",
    "StepTiming",
    *(name for name, place in _DEFINED_IN.items() if place.startswith(("plsc.errors:", "plsc.registry:"))),
}

__all__ = ["__version__", *_DEFINED_IN]


def __getattr__(name: str) -> Any:
    """Import what a public name is when it is first used."""
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'plsc' has no attribute {name!r}")
    if name not in _WITHOUT_PADDLE:
        from plsc import environment

        environment.import_paddle()
    module, _, attributes = _DEFINED_IN[name].partition(":")
    value: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
