"""The srun command that opens a shell on a node of a running job."""

import shlex
import sys

from ropewalk.cluster.backends.base import NodeProgram
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.batch.container import wrap
from ropewalk.slurm.batch.script import environment_lines
from ropewalk.slurm.profile import SlurmProfile


def step_command(run: RunDir, profile: SlurmProfile, job: str, program: NodeProgram) -> list[str]:
    """Return the command of a step beside those of the job, with the environment and the container of its agents.

    Slurm kills the step once srun is gone.
    """
    srun = [
        "srun",
        f"--jobid={job}",
        "--overlap",
        "--nodes=1",
        "--ntasks=1",
        f"--nodelist={program.address}",
        "--mpi=none",
        "--quiet",
        "--quit-on-interrupt",  # else the first Ctrl-C only asks for the state of its tasks
    ]
    srun.append("--pty" if program.terminal else "--unbuffered" if program.input else "--input=none")  # else whole lines only
    module = module_command(program.module, str(run.path), "--", *program.command, python=python_of(profile))
    inside, options = wrap(module, profile, run)
    lines = [f"cd {shlex.quote(str(run.path))} || exit 1", *environment_lines(run, profile), 'exec "$@"']
    if program.input:  # is the program's, as is its output: not that of the profile's `setup`
        lines = ["exec 3<&0 4>&1 </dev/null >&2", *lines[:-1], 'exec "$@" <&3 >&4 3<&- 4>&-']
    return [*srun, *options, "bash", "-c", "\n".join(lines), "shell", *inside]


def python_of(profile: SlurmProfile) -> str:
    """Return the Python of the agents."""
    return profile.python or ("python" if profile.container else sys.executable)
