"""Small questions, and what is answered where there is nothing of the kind."""

from ropewalk.cluster.run.directory import RunDir
from tests.jobs.models.registry.registered import trained
from tests.jobs.shell import Shell


def test_logs_of_a_rank_that_never_was(shell: Shell, running: RunDir) -> None:
    output = shell.mistake("logs", running.id, "--rank", "7")
    assert f"--rank 7: {running.id} has no such log; it has logs of ranks 0 to 1" in output
    assert "it has logs of node 0" in shell.mistake("logs", running.id, "--node", "3")


def test_feedback_of_a_run_that_answers_nobody(shell: Shell, running: RunDir) -> None:
    assert f"{running.id} is a pretrain run; name a serving run" in shell.mistake("feedback", running.id)


def test_export_of_a_step_that_is_not_there(shell: Shell) -> None:
    run = trained(shell.home / "runs", 50, 100)
    output = shell.mistake("export", run.id, "m", "--step", "99")
    assert f"--step 99: {run.id} has no such checkpoint; it has those of steps 50, 100" in output


def test_version(shell: Shell) -> None:
    assert shell("--version").split()[0] == "ropewalk"
    assert "--version" in shell("--help")
    assert "Raw text to a trained language model" in shell.out
