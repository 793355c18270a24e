"""Training as mathematics: the same run over processes, micro-batches and interruptions."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers import launched, metrics, plsc, stopped, summed_anew, tiny_digits, write_config

RANDOM = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.2}


def train(tmp_path, name, tree, *overrides):
    """One run in a process of its own; returns its run directory."""
    config = write_config(tmp_path / f"{name}.yaml", tree)
    out = tmp_path / name
    arguments = ["-c", config, "-o", f"Global.output_dir={out}"]
    for override in overrides:
        arguments += ["-o", override]
    plsc("train", *arguments, cwd=tmp_path)
    return out


def losses(run) -> np.ndarray:
    return np.array([record["loss"] for record in metrics(run)])


def changes(run) -> list[str]:
    """What each continuation of a run reported as changed."""
    lines = (run / "train.log").read_text().splitlines()
    marked = (line.partition("settings that differ from those of ")[2] for line in lines)
    return [text.strip().partition(": ")[2] for text in marked if text]


def weights(run, part="model"):
    return load_file(run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip() / f"{part}.safetensors")


def assert_bit_equal(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not different


def of_two(tree: dict, batch_size: int = 16, **settings) -> dict:
    """A recipe for two processes, with other settings of its section Global."""
    tree["Global"] |= settings
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = batch_size
    return tree


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """The folder with all runs of two processes: one launch begins them, another continues some."""
    folder = tmp_path_factory.mktemp("two")
    whole = of_two(resumable(workers=1), 32)
    jobs = [("plain", of_two(tiny_digits(), max_train_step=20)), ("parts", of_two(tiny_digits(), accum_steps=2))]
    launched(folder, [*jobs, ("straight", whole), ("broken", stopped(whole, 30))], 2)
    train(folder, "grown", ordered(), "Global.max_train_step=9")
    launched(folder, [("broken", whole), ("grown", of_two(ordered(), 99))], 2)
    return folder


@pytest.mark.smoke
@pytest.mark.distributed
def test_two_processes_follow_one_with_the_same_global_batch(of_two_processes, tmp_path):
    """Dropout off: the losses and gradient norms of 20 updates agree to 1e-5 relative."""
    tree = tiny_digits()
    tree["Global"]["max_train_step"] = 20
    one, two = train(tmp_path, "one", tree), of_two_processes / "plain"
    assert len(losses(one)) == 20
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
    norms = [[r["grad_norm"] for r in metrics(run)] for run in (one, two)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)


def test_accumulating_four_times_eight_equals_one_batch_of_32(tmp_path):
    """With clipping over two parameter groups, which must be one norm: weights agree to 1e-5."""
    tree = tiny_digits()
    tree["Optimizer"] = {**tree["Optimizer"], "name": "Momentum", "weight_decay": 0.01}
    tree["Optimizer"]["grad_clip"]["clip_norm"] = 0.5
    tree["LRScheduler"]["learning_rate"] = 0.1
    whole = train(tmp_path, "whole", tree)
    parts = train(tmp_path, "parts", tree, "Global.accum_steps=4")
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-5)
    a, b = weights(whole), weights(parts)
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-6)
    assert max(r["grad_norm"] for r in metrics(whole)) > 0.5, "clipping was not exercised"


@pytest.mark.distributed
def test_accumulation_and_processes_together(of_two_processes, tmp_path):
    """Two processes with no_sync micro-batches: the same run again."""
    one = train(tmp_path, "one", tiny_digits())
    np.testing.assert_allclose(losses(of_two_processes / "parts"), losses(one), rtol=1e-5)


def resumable(workers=2):
    """Everything that holds state: dropout, drop path, averaging, accumulation, workers, two optimizer groups."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    tree["Global"] |= {"max_train_step": None, "epochs": 2, "accum_steps": 2, "max_num_latest_checkpoint": -1}
    tree["Global"] |= {"save_interval": 7, "save_unit": "step"}
    tree["EMA"] = {"decay": 0.99}
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = 64
    tree["DataLoader"]["Train"]["loader"]["num_workers"] = workers
    return tree


def ordered():
    """A run whose samples' order alone is random."""
    tree = tiny_digits()
    tree["Global"] |= {"max_train_step": 16, "max_num_latest_checkpoint": -1}
    return tree


def straight_and_broken(tmp_path, tree):
    """Two runs, one stopped inside the second epoch (of 23 steps) and continued in a fresh process."""
    straight = train(tmp_path, "straight", tree)
    train(tmp_path, "broken", tree, "Global.max_train_step=30")
    return straight, train(tmp_path, "broken", tree, "Global.resume=auto")


def assert_bit_equal_runs(straight, broken):
    for part in ("model", "optimizer", "ema"):
        assert_bit_equal(weights(straight, part), weights(broken, part))
    last = metrics(broken)[-1]
    assert last["step"] == metrics(straight)[-1]["step"] > 30
    assert len(metrics(broken)) == len(metrics(straight)), "the log of the continued run has gaps or doubles"
    assert losses(straight).tolist() == losses(broken).tolist()


@pytest.mark.smoke
def test_a_resumed_run_ends_bit_equal(tmp_path):
    assert_bit_equal_runs(*straight_and_broken(tmp_path, resumable()))


@pytest.mark.smoke
@pytest.mark.distributed
def test_a_resumed_run_of_two_processes_ends_bit_equal(of_two_processes):
    assert_bit_equal_runs(of_two_processes / "straight", of_two_processes / "broken")


@pytest.mark.slow
def test_a_resumed_compiled_run_ends_bit_equal(tmp_path):
    """The same with compiled blocks, whose executor must draw random numbers in order."""
    tree = resumable(workers=0)
    tree["Global"]["to_static"] = True
    assert_bit_equal_runs(*straight_and_broken(tmp_path, tree))


@pytest.mark.distributed
def test_another_world_size_keeps_the_order_of_samples(of_two_processes, tmp_path):
    """Without random draws of the device: 1 process continued by 2 follows the straight run."""
    straight, grown = train(tmp_path, "straight", ordered()), of_two_processes / "grown"
    np.testing.assert_allclose(losses(grown), losses(straight), rtol=1e-5)
    path = grown / "checkpoints" / "step-00000016" / "trainer.json"
    assert json.loads(path.read_text())["parts"]["progress"]["global_batch"] == 32


def test_a_checkpoints_global_batch_that_does_not_divide_is_refused(tmp_path):
    from plsc import build
    from plsc.config import load
    from plsc.errors import ConfigError

    config = load(str(write_config(tmp_path / "c.yaml", tiny_digits())))
    kept = {"Global.global_batch_size": 32, "DataLoader.Train.sampler.batch_size": None}  # as a resume does
    config = config.replace(kept)
    assert build.local_batch_size(config, 4) == 8
    with pytest.raises(ConfigError, match="global batch of 32 is not divisible by 3 processes"):
        build.local_batch_size(config, 3)
    with pytest.raises(ConfigError, match=r"is 32, but 1 x .* is 64; .* -o Global\.global_batch_size=64"):
        build.local_batch_size(config.replace({**kept, "DataLoader.Train.sampler.batch_size": 64}), 1)


def test_continuing_with_more_epochs_follows_the_new_schedule(tmp_path):
    """The schedule is the configuration's, not the checkpoint's: lr and epochs may change on resume."""
    tree = tiny_digits()
    tree["Global"] |= {"epochs": 1, "max_train_step": None}
    run = train(tmp_path, "run", tree)
    done = metrics(run)[-1]["step"]
    train(tmp_path, "run", tree, "Global.resume=auto", "Global.epochs=2", "LRScheduler.learning_rate=0.01")
    after = [r for r in metrics(run) if r["step"] > done]
    assert len(after) == done
    # cosine over 2 epochs, halfway at the old end: about half of the new rate
    assert after[0]["lr"] == pytest.approx(0.005, rel=0.1)
    assert changes(run) == ["Global.epochs 1 → 2, LRScheduler.learning_rate 0.002 → 0.01"]


def test_the_best_checkpoint_survives_a_resume(tmp_path):
    """A worse evaluation after resuming leaves `best` where it was."""
    tree = tiny_digits()
    tree["Global"] |= {"eval_during_train": True, "eval_interval": 5, "eval_unit": "step", "max_train_step": 10}
    run = train(tmp_path, "run", tree)
    saved = json.loads((run / "checkpoints" / "step-00000010" / "trainer.json").read_text())
    best = saved["parts"]["best"]
    # pretend that the best was better than anything to come
    saved["parts"]["best"] = {**best, "value": 0.999}
    (run / "checkpoints" / "step-00000010" / "trainer.json").write_text(json.dumps(saved))
    summed_anew(run / "checkpoints" / "step-00000010")
    train(tmp_path, "run", tree, "Global.resume=auto", "Global.max_train_step=15")
    after = json.loads((run / "checkpoints" / "step-00000015" / "trainer.json").read_text())
    assert after["parts"]["best"]["value"] == 0.999
    named, record = (run / "checkpoints" / "best").read_text().splitlines()
    assert named == f"step-{best['step']:08d}" and json.loads(record) == after["parts"]["best"]


def test_recompute_changes_nothing_but_memory(tmp_path):
    """In a single process too: losses equal to the run without it, with dropout on."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    plain = train(tmp_path, "plain", tree)
    tree["DistributedStrategy"] = {"recompute": {"layerlist_interval": 1}}
    again = train(tmp_path, "again", tree)
    np.testing.assert_allclose(losses(again), losses(plain), rtol=1e-6)


@pytest.mark.smoke
def test_compiled_blocks_train_alike(tmp_path):
    """Global.to_static: the same losses, dropout included, evaluation in between included."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    tree["Global"] |= {"eval_during_train": True, "eval_interval": 4, "eval_unit": "step"}
    plain = train(tmp_path, "plain", tree, "Global.cpu_forms=False")  # whose dropout draws other numbers
    static = train(tmp_path, "static", tree, "Global.to_static=True")
    np.testing.assert_allclose(losses(static), losses(plain), rtol=1e-4)
    one, two = (metrics(run, "eval")[-1] for run in (plain, static))
    assert two["samples"] == one["samples"] == 360
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["Adam", "Momentum", "SGD", "Lamb", "LARS", "Adafactor"])
def test_every_optimizer_learns(tmp_path, optimizer):
    """In-process, a few updates on one batch lower its loss."""
    import paddle

    from plsc import build, models
    from plsc.config import load
    from plsc.losses import CELoss
    from plsc.targets import Targets

    rate = {"Adam": 0.01, "Momentum": 0.1, "SGD": 0.3, "Lamb": 0.02, "LARS": 0.2, "Adafactor": 0.05}[optimizer]
    tree = tiny_digits()
    tree["Optimizer"] = {"name": optimizer, "weight_decay": 0.001, "no_weight_decay": ["1d"]}
    if optimizer == "Adafactor":  # relative to the weights, a head of zeros would hardly move
        tree["Model"]["head_init"] = "scheme"
    config = load(str(write_config(tmp_path / "c.yaml", tree)))
    model = build.model(config)
    assert isinstance(model, models.VisionTransformer)
    update = build.optimizer(config, model, multi_precision=False)
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.normal(size=(16, 1, 8, 8)).astype("float32"))
    targets = Targets(label=paddle.to_tensor(rng.integers(0, 10, 16)))
    seen = []
    for _ in range(15):
        loss = CELoss()(model(images), targets).mean()
        loss.backward()
        seen.append(loss.item())
        update.set_lr(rate)
        update.clip_gradients()
        update.paddle_optimizer.step()
        update.clear_gradients()
    assert seen[-1] < 0.8 * seen[0], seen


def test_unfreezing_on_resume_begins_new_state(tmp_path):
    """Parameters that were frozen start with fresh moments and averages, and that is said."""
    tree = tiny_digits()
    tree["EMA"] = {"decay": 0.9}
    train(tmp_path, "run", tree, "Optimizer.freeze=[blocks.0.*]", "Global.max_train_step=4")
    run = train(tmp_path, "run", tree, "Global.resume=auto", "Global.max_train_step=6")
    log = (run / "train.log").read_text()
    assert "optimizer state of 12 arrays begins now" in log and "average of 12 arrays begins now" in log
    assert metrics(run)[-1]["step"] == 6


def test_a_checkpoint_without_its_optimizer_is_refused(tmp_path):
    """Fresh moments in the middle of a run would be a silent change."""
    tree = tiny_digits()
    run = train(tmp_path, "run", tree, "Global.max_train_step=2")
    (run / "checkpoints" / "step-00000002" / "optimizer.safetensors").unlink()
    config = tmp_path / "run.yaml"
    done = plsc("train", "-c", config, "-o", f"Global.output_dir={run}", "-o", "Global.resume=auto", check=False)
    assert done.returncode == 2 and "optimizer.safetensors is missing" in done.stderr


def test_a_continued_run_says_which_batch_it_keeps(tmp_path):
    """Another batch size on resume is reported, and config.yaml says what is done."""
    from plsc.config import load

    tree = tiny_digits()
    train(tmp_path, "run", tree, "Global.max_train_step=2")
    resume = ("Global.resume=auto", "Global.max_train_step=4", "DataLoader.Train.sampler.batch_size=8")
    run = train(tmp_path, "run", tree, *resume)
    assert "keeps its global batch of 32, not the 8 asked for" in (run / "train.log").read_text()
    assert changes(run) == ["Global.max_train_step 2 → 4"]
    assert load(str(run / "config.yaml")).Global.global_batch_size == 32


def test_a_requeued_job_goes_on_where_it_was(tmp_path):
    """Global.checkpoint of another run with resume=auto: the second start continues the new run."""
    tree = tiny_digits()
    first = train(tmp_path, "first", tree, "Global.max_train_step=2")
    again = ("Global.resume=auto", f"Global.checkpoint={first}")
    second = train(tmp_path, "second", tree, *again, "Global.max_train_step=4")
    second = train(tmp_path, "second", tree, *again, "Global.max_train_step=6")
    assert [r["step"] for r in metrics(second)] == [3, 4, 5, 6]
    assert changes(second) == ["Global.max_train_step 2 → 4", "Global.max_train_step 4 → 6"]


def test_a_finished_run_is_evaluated_when_asked_again(tmp_path):
    """A stop at the very end leaves the evaluation out; the next start makes it. config.yaml stays what was trained."""
    tree = tiny_digits()
    run = train(tmp_path, "run", tree, "Global.max_train_step=2")
    again = ("Global.resume=auto", "Global.max_train_step=2", "Global.eval_during_train=True")
    run = train(tmp_path, "run", tree, *again, "LRScheduler.learning_rate=0.5")
    assert metrics(run, "eval")[-1]["step"] == 2
    assert changes(run) == ["Global.eval_during_train False → True, LRScheduler.learning_rate 0.002 → 0.5"]
    assert "learning_rate: 0.002\n" in (run / "config.yaml").read_text()
