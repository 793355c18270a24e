"""What storms share: a run that saves and evaluates all the time."""

from tests.helpers import tiny_digits


def restless_run(processes: int = 1) -> dict:
    """A configuration without an end on digits, global batch 32, that saves every 3 updates and evaluates every 5."""
    tree = tiny_digits()
    tree["Global"] |= {
        "epochs": 1000,
        "max_train_step": None,
        "save_interval": 3,
        "save_unit": "step",
        "eval_during_train": True,
        "eval_interval": 5,
        "eval_unit": "step",
        "max_num_latest_checkpoint": 2,
    }
    tree["DataLoader"]["Train"]["sampler"]["batch_size"] = 32 // processes
    tree["DataLoader"]["Train"]["loader"]["num_workers"] = 1
    return tree
