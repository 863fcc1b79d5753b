"""Commands of kubectl, which people type and `ropewalk shell` runs."""

import secrets
import shlex
import shutil
from collections.abc import Sequence

from ropewalk.cluster.backends.base import NodeProgram
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.profile import K8sProfile


def kubectl(profile: K8sProfile, namespace: str) -> list[str]:
    """Return kubectl with the options that choose a profile's cluster and namespace."""
    chosen = {"kubeconfig": profile.kubeconfig, "context": profile.context}
    return ["kubectl", *(word for name, value in chosen.items() if value for word in (f"--{name}", value)), "-n", namespace]


def exec_command(command: Sequence[str], profile: K8sProfile, pod: str, run: RunDir, program: NodeProgram) -> list[str]:
    """Return the command that starts a program in a pod. Raises ConfigError without kubectl, which handles terminals."""
    if shutil.which("kubectl") is None:
        raise ConfigError("a shell in a pod needs kubectl, which is not installed: https://kubernetes.io/docs/tasks/tools")
    token = secrets.token_hex(8)

    def inside(*options: str) -> list[str]:
        arguments = ["--token", token, *options, f"{profile.claim_path}/{run.id}", "--", *program.command]
        return ["--", *module_command(program.module, *arguments, python=profile.python)]

    start = [*command, "exec", pod, "--container=ropewalk"]
    guard = shlex.join([*start, "--stdin", *inside("--guard")])
    shell = shlex.join([*start, *_streams(program), *inside()])
    return module_command("ropewalk.k8s.guarded", guard, shell)


def _streams(program: NodeProgram) -> list[str]:
    if program.terminal:
        return ["--stdin", "--tty"]
    return ["--stdin"] if program.input else []
