"""Call the user's function and store its result in the run."""

import json
import os
import sys

from ropewalk.cluster.errors import EXIT_REQUEUE, DataError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.orchestration.function.call import import_function, read_call, write_result
from ropewalk.jobs.orchestration.function.config import FunctionConfig
from ropewalk.jobs.runs.program import recorder
from ropewalk.jobs.runs.program.environment import project_folder, variables_of
from ropewalk.jobs.runs.program.verdict import ProgramFailedError


def main(context: JobContext) -> dict[str, object]:
    """Call the function and return rank 0's `{"result": ...}`. An exception of the function is the run's error."""
    config = context.config(FunctionConfig)
    sys.path.insert(0, project_folder(context.run, config.directory))
    if config.by_value:
        function, args, kwargs = read_call(context.run.path)
    else:
        function, args, kwargs = import_function(config.function), tuple(config.args), dict(config.kwargs)
    os.environ.update(variables_of(context, config.launch))  # for `import ropewalk` in the function
    try:
        value = function(*args, **kwargs)
    except SystemExit as leave:
        if leave.code == EXIT_REQUEUE:
            raise StopRequested("the function exited with 85") from None
        raise ProgramFailedError(f"{config.function} exited with {leave.code!r}") from leave
    finally:
        recorder.flush()  # this process exits without interpreter shutdown
    if context.rank != 0:
        return {}
    if config.by_value:
        write_result(context.run.attempt_dir(context.attempt), value)
        return {"pickled": True}
    try:
        return {"result": json.loads(json.dumps(value, allow_nan=False))}
    except (TypeError, ValueError) as error:
        raise DataError(f"{config.function} returned a value that is not JSON ({error}); submit it with by_value=True") from None
