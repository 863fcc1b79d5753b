"""An environment that travels to the nodes of a Slurm job."""

from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.packages.archive import FOLDER
from ropewalk.cluster.packages.build import hash_of, inputs_of
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.doctor import checks
from ropewalk.slurm.lab.cluster import Lab
from tests.cluster.test_packages import environment
from tests.slurm.test_command import project, start
from tests.slurm.toy import finish, said

__all__ = ["project"]


@pytest.mark.soak(
    "packs and unpacks another environment; test_eight_nodes_unpack_at_once_and_one_that_was_killed_begins_anew has nodes,"
    " jobs/orchestration/command/test_packages.py the command"
)
def test_every_node_unpacks_the_environment_that_the_record_names(slurm_lab: Lab, project: Path, tmp_path: Path) -> None:
    folder = environment(tmp_path / "env")
    (project / "train.py").write_text("import os; print('in', os.environ['VIRTUAL_ENV'])")
    keys = {"command": ["python", "train.py"], "packages": {"path": str(folder)}, "resources": {"nodes": 2, "grace_seconds": 20}}
    run = start(project, **keys)
    assert finish(run).state is RunState.SUCCEEDED, said(run)
    packages = run.record["packages"]
    assert (tmp_path / "runs" / FOLDER / packages["archive"]).is_file()
    for rank in range(2):
        (line,) = (run.log_dir(1) / f"rank-{rank}.log").read_text().splitlines()
        assert line.startswith("in ")
        assert Path(line[3:]).name == packages["hash"]
        assert not Path(line[3:]).is_relative_to(tmp_path), "it is on the node's disk"


def test_doctor_says_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("uv.lock", "pyproject.toml"):
        (tmp_path / name).write_text("")
    (store := tmp_path / "runs" / FOLDER).mkdir(parents=True)
    lock = tmp_path / "uv.lock"
    profile = {"backend": "slurm", "runs": str(tmp_path / "runs"), "packages": {"uv": str(lock)}}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": profile}))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))

    def line() -> str:
        (detail,) = [check.detail for check in checks("lab") if check.name == "packages" and str(lock) in check.detail]
        return detail

    assert line() == f"{lock} is not built yet, the next submission does it"
    inputs = inputs_of(lock)
    write_json(store / "earlier.json", {**inputs, "python": "3.10.1"})
    assert line().endswith(f"the newest there differs: python was 3.10.1, is {inputs['python']}")
    write_json(store / f"{hash_of(inputs)}.json", inputs)
    assert line() == f"{lock} is built, as {hash_of(inputs)}"
