"""What saving costs training: windows of updates with and without a checkpoint at their start, side by side.

    python benchmarks/checkpointing.py [--rounds 5] [--steps 20] [--batch 8] [--model NAME] [--folder FOLDER]

ViT-B/16 at 224 px with AdamW: weights and two moments, 1.04 GB a checkpoint. Each round has a window of each kind, in
turns; the ratio is that of the medians. A window with a checkpoint has everything that training waits for: the copy of
the state, and what writing takes from the processor while the updates run. The write has until the window's end; where
it is not done by then, the window waits for it.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import train_step
from plsc import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="windows of each kind")
    parser.add_argument("--steps", type=int, default=20, help="updates of a window")
    parser.add_argument("--batch", type=int, default=8, help="pictures of an update")
    parser.add_argument("--model", default="ViT_base_patch16_224")
    parser.add_argument("--folder", type=Path, help="on the disk to write to; by default a temporary folder")
    arguments = parser.parse_args()
    environment.import_paddle()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measure(folder / "run", arguments)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    trainer, batches = train_step.trainer(folder, model=arguments.model, batch_size=arguments.batch)
    checkpointer = trainer.checkpointer
    walls: dict[bool, list[float]] = {False: [], True: []}
    processor: dict[bool, list[float]] = {False: [], True: []}
    written = []

    def window(saves: bool) -> None:
        wall, used = time.perf_counter(), time.process_time()
        if saves:
            trainer.save()
        for _ in range(arguments.steps):
            trainer.advance(batches)
        if saves:
            written.append(checkpointer.wait())
        walls[saves].append(time.perf_counter() - wall)
        processor[saves].append(time.process_time() - used)

    trainer.advance(batches)  # the first update makes the optimizer's state, and the first copy asks for its memory
    window(True)
    for times in (walls, processor):
        times[True].clear()
    written.clear()
    for number in range(arguments.rounds):
        for saves in (False, True) if number % 2 == 0 else (True, False):
            window(saves)
            shown = f"{walls[saves][-1]:7.2f} s, {processor[saves][-1]:7.2f} s of processor"
            print(f"round {number + 1}, {'with' if saves else 'without':<7} a checkpoint: {shown}", flush=True)
    trainer.feed.loader.close()
    size = sum(file.stat().st_size for file in written[-1].path.iterdir())
    median = {saves: statistics.median(times) for saves, times in walls.items()}
    copies = statistics.median(w.copy_seconds for w in written)
    writes = statistics.median(w.write_seconds for w in written)
    print(f"\n{arguments.model}, AdamW, batch {arguments.batch}")
    print(f"a checkpoint of {size / 1e9:.2f} GB every {arguments.steps} updates")
    print(f"an update without {median[False] / arguments.steps:.3f} s; copying {copies:.2f} s, writing {writes:.2f} s")
    print(f"with / without      {median[True] / median[False]:.3f}   (goal: at most 1.05)")
    used = {saves: statistics.median(times) for saves, times in processor.items()}
    print(f"of processor time   {used[True] / used[False]:.3f}")


if __name__ == "__main__":
    main()
