"""The keys of a Slurm cluster in the profile file: what is refused, and in which words."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.errors import ConfigError
from ropewalk.slurm.backend import SlurmBackend
from ropewalk.slurm.profile import RESERVED_OPTIONS, SlurmProfile
from tests.jobs.conftest import shell  # noqa: F401
from tests.jobs.shell import Shell, pretrain


def load(options: dict[str, Any]) -> SlurmProfile:
    return SlurmBackend(Profile(name="big", backend="slurm", options=options)).profile


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partion": "gpu"}, "cluster 'big': unknown key 'partion'; did you mean 'partition'?"),
        ({"container": {"runtime": "apptainer", "imgae": "x"}}, "unknown key 'container.imgae'; did you mean 'container.image'?"),
        ({"container": {"runtime": "docker", "image": "x"}}, "container.runtime: must be 'apptainer', 'singularity', "),
        ({"container": {"runtime": "apptainer"}}, "container.image: required"),
        ({"partition": 3}, "partition: must be a text, not 3"),
        ({"partition": ["gpu", "big"]}, "partition: must be a text"),
        ({"exclusive": "perhaps"}, "exclusive: must be true or false, not 'perhaps'"),
        ({"setup": "module load cuda"}, "setup: "),
        ({"environment": ["A=1"]}, "environment: must be a mapping of keys to values"),
        ({"sbatch": {"nodes": 3}}, "sbatch: nodes has its own key in the profile or the job's resources"),
        ({"sbatch": {"--cpus_per_task": 3}}, "sbatch: cpus-per-task has its own key"),
        ({"sbatch": {"partition": "gpu"}}, "sbatch: partition has its own key"),
        ({"sbatch": {"mem": 3}, "account": 1}, "account: must be a text, not 1; sbatch: mem has its own key"),
        (
            {"environment": {"WANDB_API_KEY": "abc"}},
            "variable WANDB_API_KEY looks like a secret, and job scripts are stored as files; a job's key secrets",
        ),
        ({"environment": {"HF_TOKEN": "abc"}}, "HF_TOKEN looks like a secret"),
        ({"environment": {"db_password": "abc"}}, "db_password looks like a secret"),
        ({"environment": {"A B": "1"}}, "environment: variable 'A B': a name consists of letters, digits and _"),
        (
            {"constraint": "a100 # fast"},
            "constraint: 'a100 # fast' contains blanks, quotes, backslashes or #, which an #SBATCH line cannot hold",
        ),
        ({"sbatch": {"x\ntouch /tmp/x\n#SBATCH --nice": 1}}, "is not the long name of an sbatch option: lower-case letters"),
        ({"sbatch": {"mail-type": "END\nFAIL"}}, "mail-type: 'END\\nFAIL' contains blanks"),
        ({"container": {"runtime": "podman", "image": "x", "mounts": ["data"]}}, "container.mounts: must be absolute"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "abc" not in str(caught.value), "a secret is not repeated"


@pytest.mark.parametrize("name", sorted(RESERVED_OPTIONS))
def test_what_the_job_script_decides_is_nobody_elses(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has its own key"):
        load({"sbatch": {name: "x"}})


def test_what_is_accepted() -> None:
    assert load({}).options == {}
    profile = load(
        {
            "partition": "gpu",
            "exclusive": True,
            "exclude": "n[1-3]",
            "sbatch": {"mail_type": "END", "--nice": 100, "contiguous": True},
            "environment": {"NCCL_DEBUG": "INFO", "TOKENIZERS_PARALLELISM": "false"},
        }
    )
    expected = {"partition": "gpu", "exclude": "n[1-3]", "exclusive": True, "mail-type": "END", "nice": 100, "contiguous": True}
    assert profile.options == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partion": "gpu"}, "error: cluster 'mine': unknown key 'partion'; did you mean 'partition'?"),
        ({"environment": {"HF_TOKEN": "abc"}}, "error: cluster 'mine': environment: variable HF_TOKEN looks like a secret"),
        ({"sbatch": {"time": 3}}, "error: cluster 'mine': sbatch: time has its own key"),
    ],
)
def test_the_command_says_it_in_a_line(
    shell: Shell,  # noqa: F811
    options: dict[str, Any],
    message: str,
) -> None:
    profiles = Path(os.environ["ROPEWALK_CLUSTERS"])
    profiles.write_text(yaml.safe_dump({"mine": {"backend": "slurm", **options}}))
    for arguments in (("--dry-run",), ()):
        assert shell.mistake("submit", *pretrain("--on", "mine", *arguments)).startswith(message)
    assert not Path("runs").exists()
