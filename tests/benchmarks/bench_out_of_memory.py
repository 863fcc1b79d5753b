"""Planted out-of-memory errors on one of several ranks whose micro-batch is `auto`.

python -m tests.benchmarks.bench_out_of_memory [--errors 50] [--ranks 4]

The errors hit rank 1 in the middle of a step, until its micro-batches have one sample: three in each run, at steps that vary. The
goals: no group that hangs, and losses that equal those of a run with micro-batches of 1 to 1e-6.
"""

import argparse
import tempfile
import time
from pathlib import Path

from ropewalk.cluster.errors import EXIT_LOST_PEER
from ropewalk.cluster.run.directory import RunDir
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import events, launch, log_of, losses, make_run, pretrain_config, start

STEPS, SAMPLES = 4, 8


def planted(run: RunDir, ranks: int, step: int, most_errors: int) -> int:
    """Train to the end with planted errors, and return their number."""
    hook = {"TEST_HOOK": "out_of_memory", "MOST_SAMPLES": "1", "EXHAUSTED_STEP": str(step)}
    for number in range(most_errors):
        codes = start(run, ranks, **hook).wait()
        assert codes == [EXIT_LOST_PEER] * ranks, f"error {number}: {codes}\n{log_of(run)}"
    launch(run, ranks, **({**hook, "MOST_SAMPLES": str(SAMPLES >> most_errors)}))
    return len(events(run, "out_of_memory"))


def main() -> None:
    """Plant the errors, and compare the losses of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=4)
    options = parser.parse_args()
    began, done, worst = time.monotonic(), 0, 0.0
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        data = make_dataset(folder / "data")
        batch = {"global_batch": SAMPLES * options.ranks, "micro_batch": 1}
        fixed = make_run(folder / "fixed", pretrain_config(data, steps=STEPS, batch=batch))
        launch(fixed, options.ranks)
        expected = losses(fixed)
        while done < options.errors:
            config = pretrain_config(data, steps=STEPS, batch={**batch, "micro_batch": "auto"})
            run = make_run(folder / f"run-{done}", config)
            done += planted(run, options.ranks, done % (STEPS - 1), min(3, options.errors - done))
            worst = max(worst, *(abs(loss / expected[step] - 1) for step, loss in losses(run).items()))
            print(f"{done} errors, losses differ by at most {worst:.1e}, {time.monotonic() - began:.0f} s", flush=True)
    assert worst <= 1e-6, "the loss depends on the micro-batch"
    print(f"{done} out-of-memory errors on {options.ranks} ranks: 0 hung, losses within {worst:.1e}")


if __name__ == "__main__":
    main()
