"""`plsc train`, as a script for paddle.distributed.launch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plsc.cli import main

if __name__ == "__main__":
    sys.exit(main(command="train"))
