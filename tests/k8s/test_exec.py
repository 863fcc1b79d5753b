"""The streams of programs that `kubectl exec` starts in a pod."""

from pathlib import Path

import pytest

from ropewalk.cluster.backends.base import NodeProgram
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.kubectl import exec_command
from ropewalk.k8s.profile import K8sProfile


@pytest.mark.parametrize(
    ("streams", "options"), [({"terminal": True}, ["--stdin", "--tty"]), ({"input": True}, ["--stdin"]), ({}, [])]
)
def test_a_program_gets_a_terminal_or_input_or_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: dict[str, bool], options: list[str]
) -> None:
    (tmp_path / "kubectl").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    profile = K8sProfile.model_validate({"image": "image", "claim": "runs", "python": "python"})
    program = NodeProgram(module="a.module", node=0, address="", command=["cat"], **streams)
    command = exec_command(["kubectl"], profile, "pod", RunDir(tmp_path / "run"), program)[-1].split()
    assert command[: len(options) + 5] == ["kubectl", "exec", "pod", "--container=ropewalk", *options, "--"]
    assert command[-2:] == ["--", "cat"]
