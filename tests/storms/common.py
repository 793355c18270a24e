"""What storms share: a run that saves and evaluates all the time."""

import socket
import subprocess
from pathlib import Path

from tests.helpers import CHECKOUT, clean_environment, command, tiny_digits


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


def variables_of_ranks(processes: int) -> list[dict[str, str]]:
    """What the launcher writes into each rank's environment; nothing for a single process."""
    if processes == 1:
        return [{}]
    endpoints = [f"127.0.0.1:{free_port()}" for _ in range(processes)]
    return [
        {
            "PADDLE_MASTER": endpoints[0],
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": str(processes),
            "PADDLE_LOCAL_SIZE": str(processes),
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
            "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
            "PADDLE_DISTRI_BACKEND": "gloo",
        }
        for rank in range(processes)
    ]


def start_ranks(arguments: list, processes: int, folder: Path) -> list[subprocess.Popen]:
    """`plsc …` in several processes without the launcher, so that each one's exit code can be seen.

    Their output goes to rank-N.log in `folder`, after that of earlier ones.
    """
    started = []
    for rank, variables in enumerate(variables_of_ranks(processes)):
        env = clean_environment(PYTHONPATH=str(CHECKOUT)) | variables
        with open(folder / f"rank-{rank}.log", "a") as log:
            started.append(
                subprocess.Popen(
                    command(arguments),
                    cwd=folder,
                    env=env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    return started


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
