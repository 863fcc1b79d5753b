"""Every benchmark runs in small; its figures are not checked."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.nfs import need_nfs
from tests.patience import HANG_SECONDS
from tests.slurm.conftest import need_slurm
from tests.slurm.ssh.login_node import need_sshd

ROOT = Path(__file__).parents[2]

SMALL = {
    "bench_evaluate": ["--tiny", "--items", "8"],
    "bench_assistant": ["--model", "tiny", "--folder", "build/self-check"],
    "bench_learns": ["--model", "tiny", "--steps", "2", "--seeds", "0", "--ranks", "1"],
    "bench_distill": ["--seeds", "2", "--steps", "2", "--teacher-steps", "2", "--texts", "30", "--sequences", "4"],
    "bench_align_oracles": ["--methods", "dpo", "--ranks", "1", "--trl", "none"],
    "bench_grpo_oracles": ["--variants", "grpo", "--ranks", "1", "--weights", "all", "--trl", "none"],
    "bench_audit": ["--items", "4", "--peer", "4"],
    "bench_compress": ["--tiny", "--sequences", "4", "--calibration", "2", "--seeds", "2"],
    "bench_speculative": ["--size", "tiny", "--layers", "1", "--steps", "2", "--seq-len", "32", "--most", "2", "--tokens", "8"],
    "bench_checkpoint": ["--size", "0", "--step-seconds", "0.02", "--saves", "1", "--ways", "none,ropewalk,dcp"],
    "bench_corruption": ["--flips", "1", "--every-steps", "4", "--clean-steps", "10", "--cost-steps", "8"],
    "bench_command": ["--rounds", "1", "--kills", "1", "--seconds", "1"],
    "bench_data_growth": ["--short", "1000,2000"],
    "bench_data_path": ["--megabytes", "1", "--items", "30", "--vocabulary", "1000"],
    "bench_data_size": ["--gb", "1", "--ranks", "2", "--shards", "1000", "--s3-gb", "0"],
    "bench_drift": ["--texts", "100", "--tries", "1", "--null", "2", "--series", "0"],
    "bench_faults": ["--faults", "1", "--seconds", "4"],
    "bench_false_alarms": ["--runs", "1", "--steps", "20"],
    "bench_forecast": ["--ranks", "2", "--layers", "2", "--modes", "none", "--no-goal"],
    "bench_growth": [],
    "bench_inspect": ["--stacks", "100", "--rounds", "2", "--steps", "2", "--ranks", "0"],
    "bench_head": ["--vocabulary", "4096", "--peak-tokens", "512", "--tokens", "64", "--rounds", "1"],
    "bench_hung": ["--hangs", "1", "--kinds", "stopped", "--step-seconds", "0"],
    "bench_gateway": ["--requests", "6", "--tokens", "6", "--turns", "1", "--connections", "50"],
    "bench_queue_order": ["--jobs", "4", "--nodes", "8"],
    "bench_loader": ["--tokens", "200000", "--rounds", "1"],
    "bench_many_files": ["--nodes", "2", "--days", "0.1", "--runs", "200"],
    "bench_many_runs": ["--runs", "20"],
    "bench_lr_transfer": ["--tokens", "4096", "--seeds", "1", "--widths", "32,64"],
    "bench_mirror": ["--live", "2", "--seconds", "3", "--finished", "2", "--lines", "100", "--sidecar", "2", "--steps", "10"],
    "bench_muon": ["--preset", "tiny", "--tokens", "1024", "--rounds", "1"],
    "bench_out_of_memory": ["--errors", "1"],
    "bench_packages": ["--module", "json", "--packages", ""],
    "bench_memory_copies": ["--copies", "1", "--megabytes", "1"],
    "bench_preprocess": ["--megabytes", "1", "--kills", "1", "--actors", "1,2"],
    "bench_rules": ["--megabytes", "0", "--signatures", "20000"],
    "bench_recovery": ["--kills", "1"],
    "bench_resize": ["--resizes", "1", "--seconds", "0", "--nodes", "1..2"],
    "bench_serve": ["--requests", "6", "--tokens", "6", "--turns", "1"],
    "bench_sft_oracles": ["--ranks", "1", "--trl", "none"],
    "bench_sockets": ["--ranks", "3,4"],
    "bench_slurm": ["--rounds", "2", "--runs", "20"],
    "bench_slurm_recovery": ["1"],
    "bench_ssh": ["--rounds", "1", "--runs", "3"],
    "bench_stragglers": ["--slow", "1", "--even", "1", "--computing", "0"],
    "bench_submit": ["--functions", "20", "--single", "2", "--rounds", "1"],
    "bench_start_memory": ["--ranks", "2", "--sizes", "78"],
    "bench_ui": ["--runs", "4", "--curves", "2", "--steps", "50"],
    "bench_sweep": ["--trials", "2", "--steps", "8"],
    "bench_sweep_overhead": ["--trials", "2", "--steps", "4"],
    "bench_searchers": ["--seeds", "2", "--searches", "sobol", "--schedulers", "asha"],
    "bench_search_peers": ["--seeds", "2", "--searches", "optuna-tpe"],
    "bench_trained_searches": ["--seeds", "1", "--trials", "2", "--searches", "sobol"],
    "bench_sweep_search": ["--seeds", "1", "--trials", "2", "--steps", "8"],
    "bench_training_loop": ["--steps", "2", "--rounds", "1"],
}
OF_KUBERNETES = {"bench_k8s", "bench_k8s_many", "bench_k8s_start"}  # they bring up a cluster of their own


@pytest.mark.soak("slow, and protects no promise")
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_in_small(name: str, tmp_path: Path) -> None:
    if name == "bench_loader":
        pytest.importorskip("litdata", reason="needs the peers: pip install '.[bench]', as make bench does")
    if name == "bench_packages":
        need_nfs()
    if name == "bench_ssh":
        need_sshd()
    if "slurm" in name or name in ("bench_submit", "bench_queue_order", "bench_ssh"):
        need_slurm(accounting=name == "bench_queue_order")
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *SMALL[name]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip(), "it prints figures"


@pytest.mark.soak("slow, and protects no promise")
@pytest.mark.parametrize("name", sorted(OF_KUBERNETES))
def test_a_benchmark_of_kubernetes_says_what_it_takes(name: str) -> None:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--help"]
    assert "usage" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_no_benchmark_is_forgotten() -> None:
    results = {path.stem for path in Path(__file__).parent.glob("bench_*.py")}
    assert results == SMALL.keys() | OF_KUBERNETES
