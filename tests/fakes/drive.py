"""Run the `preprocess` job the way its agent would: from a run directory, or from a configuration without Ray."""

import sys
from pathlib import Path

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.passes.pipeline import make_data_set
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.jobs.preprocess.config import PreprocessConfig
from ropewalk.jobs.preprocess.job import main
from tests.fakes.documents import in_this_process


def drive(run_dir: str) -> dict[str, object]:
    run = RunDir(run_dir)
    return main(JobContext(run=run, attempt=run.begin_attempt()))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    try:
        if path.is_dir():
            print(drive(sys.argv[1]))
        else:
            config = PreprocessConfig.model_validate_json(path.read_text())
            make_data_set(config, config.seed, in_this_process(config), Progress(lambda _: None))
    except RopewalkError as error:
        print(error)
        sys.exit(1)
