"""Several runs and evaluations one after the other in the same processes: starting them takes longer than they do.

python -m paddle.distributed.launch … several.py jobs.json
jobs.json is a list of {"train": recipe} and {"evaluate": path, "into": file}.
"""

import json
import sys
from pathlib import Path

import plsc


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        if "train" in job:
            plsc.train(plsc.load_config(job["train"]))
        else:
            result = plsc.evaluate(job["evaluate"])
            Path(job["into"]).write_text(json.dumps(dict(result)))


if __name__ == "__main__":
    main()
