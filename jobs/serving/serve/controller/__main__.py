"""Process of the controller: python -m ropewalk.jobs.serving.serve.controller RUN_DIR --attempt N --parent PID."""

import argparse
import faulthandler
import logging
import os
import sys
from pathlib import Path

from ropewalk.cluster.engines.entry import die_with_parent
from ropewalk.cluster.errors import EXIT_FAILED, ConfigError
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.run.context import STOP_VARIABLE, JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.controller.applications import Applications
from ropewalk.jobs.serving.serve.controller.controller import Controller
from ropewalk.jobs.serving.serve.controller.state import ServingState
from ropewalk.jobs.serving.serve.files import LocalFiles, ServingFiles
from ropewalk.jobs.serving.serve.models import find_source

CONNECT_SECONDS = 20.0  # Ray may wait for ever for one that has just restarted
SERVE_SECONDS = 60.0  # Ray Serve's controller imports much: on a busy machine it needs more than 20 s


def main() -> None:
    """Control one attempt of a serving run until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    configure_logging("controller")
    die_with_parent(arguments.parent)
    flag = os.environ.get(STOP_VARIABLE)
    run = RunDir(arguments.run_dir)
    context = JobContext(run=run, attempt=arguments.attempt, stop_flag=Path(flag) if flag else None)
    config, local, files = context.config(ServeConfig), LocalFiles(), ServingFiles(run)
    applications = Applications(config, files.replicas / f"{arguments.attempt:04d}", local.load)
    import ray.serve  # noqa: F401  # its seconds do not count below

    for step, seconds in ((applications.connect, CONNECT_SECONDS), (applications.start_serve, SERVE_SECONDS)):
        faulthandler.dump_traceback_later(seconds, exit=True)
        step()
        faulthandler.cancel_dump_traceback_later()
    state = ServingState.read(files.state)
    serves = state is not None and state.attempt == arguments.attempt and state.stable is not None
    try:
        source = find_source(config.model, run.path.parent, serves=serves)
    except ConfigError as error:
        cause = str(error)
    else:
        cause = Controller(context, applications, source, local).run()
    if cause:
        write_json(local.failure, {"error": cause})
    logging.shutdown()
    sys.stdout.flush()
    os._exit(EXIT_FAILED if cause else 0)  # do not wait for Ray's threads


if __name__ == "__main__":
    main()
