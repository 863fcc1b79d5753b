"""The test cluster is a real one: jobs run, nodes die and come back, and nothing is left of it."""

from slurm.lab import Lab


def test_a_job_runs_on_four_nodes(slurm_lab: Lab) -> None:
    seen = slurm_lab.command("srun", "--nodes=4", "printenv", "SLURMD_NODENAME").split()
    assert sorted(seen) == slurm_lab.nodes
