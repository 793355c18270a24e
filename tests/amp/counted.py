"""For Global.imports of a recipe: each process writes where it waits for the device, update by update.

The run's folder gets waits-RANK.jsonl, whose lines are as of runs.watched_waits.
"""

import json
from pathlib import Path

from plsc.engine.trainer import Trainer
from tests.amp.runs import watched_waits

_advance = Trainer.advance


def counted(self, batches):
    with watched_waits() as seen:
        norm = _advance(self, batches)
    with open(Path(self.config.Global.output_dir) / f"waits-{self.world.rank}.jsonl", "a") as file:
        print(json.dumps(seen), file=file)
    return norm


Trainer.advance = counted
