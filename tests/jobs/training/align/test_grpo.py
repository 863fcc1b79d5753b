"""GRPO as a whole: what is learnt, whoever draws it; killed at any moment; rewards that fail; what the ledger says of it all."""

import shutil
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from ropewalk import jobs
from ropewalk.cluster.config_reader import load_config, read_job_file
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.rollouts.ledger import PRUNED, Round, arrow_table, prune, read_rollouts, rollouts_folder
from tests.jobs.launch import Ranks, equal, events, launch, log_of, start, weights
from tests.jobs.training.align.rolling import grpo_config, grpo_run, last_lines, prompts, write_prompts

HERE = "tests.jobs.training.align.rolling"


def metrics(run: RunDir, name: str) -> list[float]:
    return [line[name] for line in run.read_metrics() if name in line]


def drawn(run: RunDir) -> list[dict[str, Any]]:
    """The rollouts of the ledger that were learnt from or will be, in the order of the run."""
    rows = [row for row in read_rollouts(run).to_pylist() if row["state"] in {"used", "done"}]
    return sorted(rows, key=lambda row: (row["slot"], row["sample"]))


def check_used_once(run: RunDir, steps: int, global_batch: int = 16, group: int = 4) -> None:
    """Every rollout of the run is there once, used by its own step."""
    rows = read_rollouts(run)
    assert Counter(rows["state"].to_pylist()) == {"used": steps * global_batch}
    keys = zip(rows["slot"].to_pylist(), rows["sample"].to_pylist(), rows["step"].to_pylist(), strict=True)
    expected = {(k // group, k % group, k // global_batch) for k in range(steps * global_batch)}
    assert sorted(keys) == sorted(expected)


@pytest.mark.soak(
    "four ranks; test_workers_draw_what_ranks_would_and_a_killed_one_is_replaced compares what is drawn, and"
    " test_loss_does_not_depend_on_the_world_size the loop"
)
def test_no_number_of_ranks_and_no_micro_batch_changes_what_is_drawn_and_learnt(model: Path, data: Path, tmp_path: Path) -> None:
    config = grpo_config(model, data, steps=2, checkpoint={"every_steps": 9}, grpo={"kl": 0.001})
    runs = [grpo_run(tmp_path, {**config, "batch": {"global_batch": 16, "micro_batch": size}}) for size in (16, 5)]
    results = [launch(run, ranks) for run, ranks in zip(runs, (1, 3), strict=True)]
    assert metrics(runs[0], "train/importance_ratio") == pytest.approx([1.0] * 2, abs=1e-4)
    assert results[0]["prompts"] == results[1]["prompts"] == 10
    check_used_once(runs[0], 2)
    first, other = ([row["tokens"] for row in drawn(run)[:16]] for run in runs)
    assert first == other
    for name in ("train/gradient_norm", "train/reward", "train/kl"):
        mine, theirs = (metrics(run, name) for run in runs)
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-8)


@pytest.mark.soak("18 steps of generation; make test compares losses and gradients with the paper's, and kills runs")
def test_it_learns(model: Path, data: Path, tmp_path: Path) -> None:
    config = grpo_config(model, data, steps=18, checkpoint={"every_steps": 9}, grpo={"kl": 0.001})
    run = grpo_run(tmp_path, {**config, "batch": {"global_batch": 16, "micro_batch": 16}})
    launch(run, 1)
    rewards = metrics(run, "train/reward")
    assert sum(rewards[-5:]) / 5 > 2 * sum(rewards[:5]) / 5
    check_used_once(run, 18)


STALLS = ["put:after:7:1", "commit:before:2:0"]  # and of which rank
SETTLING = [*STALLS, "use:before:1:0"]  # the last of it when all steps are done and nothing of it is marked as used
MORE_STALLS = ["put:before:2:1", *STALLS, "commit:after:3:0", "use:before:1:0"]


@pytest.mark.parametrize(
    ("stalls", "steps"),
    [
        (STALLS, 5),
        pytest.param(SETTLING, 5, marks=pytest.mark.soak("a dozen more starts of two ranks; make test runs two moments")),
        pytest.param(MORE_STALLS, 8, marks=pytest.mark.soak("a dozen more starts of two ranks; make test runs two moments")),
    ],
    ids=["two", "three", "five"],
)
def test_killed_at_any_moment_it_ends_bit_identical_and_no_rollout_is_used_twice(
    stalls: list[str], steps: int, model: Path, data: Path, tmp_path: Path
) -> None:
    config = grpo_config(model, data, steps=steps, grpo={"chunk": 3})
    whole, killed = grpo_run(tmp_path, config), grpo_run(tmp_path, config)
    launch(whole, 2)
    for number, stall in enumerate(stalls):
        group = start(killed, 2, TEST_HOOK="stall_rollouts", TEST_STALL=stall)
        group.until((killed.path / "stalled").exists)
        (killed.path / "stalled").unlink()
        if number % 2 or stall.startswith("use"):  # rank 1 only waits for rank 0's save, until an agent ends it
            group.kill()
        else:  # one rank alone, of which the other learns by itself
            group.processes[int(stall[-1])].kill()
            assert sorted(group.wait()) == [-signal.SIGKILL, 75], log_of(killed)
    unfinished = read_rollouts(killed)
    assert {"used", "done"} <= set(unfinished["state"].to_pylist())
    launch(killed, 2)
    assert events(killed, "resumed")
    assert equal(weights(whole), weights(killed))
    assert drawn(whole) == drawn(killed)
    check_used_once(killed, steps)
    assert metrics(whole, "train/reward") == [row["train/reward"] for row in last_lines(killed)]


@pytest.mark.soak(
    "a training of its own; test_workers_draw_what_ranks_would_and_a_killed_one_is_replaced covers rewards of held-out prompts"
)
def test_validation_answers_held_out_prompts_and_old_rollouts_are_removed(model: Path, data: Path, tmp_path: Path) -> None:
    """And a kill in the middle of a validation changes nothing."""
    held_out = write_prompts(tmp_path / "held-out.jsonl", prompts(6))
    rewards = ["tests.jobs.training.align.rolling:share_of_letters", {"length": {"target": 8}, "weight": 0.25}]
    keys = {"checkpoint": {"every_steps": 2, "keep": 1}, "validation_data": str(held_out), "validation": {"every_steps": 2}}
    config = grpo_config(model, data, steps=4, **keys, grpo={"keep_steps": 1, "rewards": rewards})
    first, two = (grpo_run(tmp_path, AlignConfig.model_validate(config).model_dump(mode="json")) for _ in range(2))
    results = launch(first, 2)
    group = start(two, 2, TEST_HOOK="stall_rollouts", TEST_STALL="put:before:5:1")  # after two of each step
    group.until((two.path / "stalled").exists)
    group.kill()
    launch(two, 2)
    assert equal(weights(first), weights(two))
    assert [line["step"] for line in first.read_metrics() if "validation/reward" in line] == [2, 4]
    for name in ("reward", "reward/share_of_letters", "reward/length", "answer_tokens", "truncated_fraction"):
        assert metrics(first, f"validation/{name}") == metrics(two, f"validation/{name}")[-2:]
    (answers,) = [pa.concat_tables([arrow_table(raw) for _, raw in answered(first, 4).chunks()])]
    rows = answers.to_pylist()
    assert [(row["slot"], row["sample"], row["policy_version"]) for row in rows] == [(slot, 0, 4) for slot in range(6)]
    total = [row["rewards"][0] + 0.25 * row["rewards"][1] for row in rows]
    assert results["validation/reward"] == pytest.approx(sum(total) / 6)
    assert results["validation/loss"] == -results["validation/reward"]
    assert (results["prompts"], results["held_out"]) == (10, 6)
    assert read_json(rollouts_folder(first) / PRUNED) == {"before": 48, "rounds": 3, "rollouts": 48}
    assert Counter(read_rollouts(first)["state"].to_pylist()) == {"used": 16}


def answered(run: RunDir, step: int) -> Round:
    return Round(run, Fence(run, 1, 0), step, held_out=True)


def test_who_is_killed_while_it_prunes_counts_nothing_twice(tmp_path: Path) -> None:
    run = grpo_run(tmp_path, {})
    fence = Fence(run, run.begin_attempt(), 0)
    fence.claim()
    for position in (0, 16, 32, 48):
        item = Round(run, fence, position)
        item.make()
        item.commit([], position // 16)
        if position < 48:
            item.use(position // 16)
    backup = shutil.copytree(rollouts_folder(run) / "at-0000000000", tmp_path / "kept")
    prune(run, fence, 32)
    shutil.copytree(backup, rollouts_folder(run) / "at-0000000000")  # as a kill before its removal would have left it
    prune(run, fence, 64)
    pruned = read_json(rollouts_folder(run) / PRUNED)
    assert pruned is not None
    assert (pruned["before"], pruned["rounds"]) == (64, 3)
    assert [path.name for path in rollouts_folder(run).glob("at-*")] == ["at-0000000048"], "it is not used yet"


@pytest.mark.parametrize(
    ("temperature", "top_p"),
    [
        (0.6, 0.8),
        *(
            pytest.param(*item, marks=pytest.mark.soak("make test runs (0.6, 0.8), in which both differ from 1"))
            for item in ((0.6, 1.0), (1.0, 0.8))
        ),
    ],
)
def test_the_importance_ratio_of_a_policy_to_itself_is_one(
    temperature: float, top_p: float, model: Path, data: Path, tmp_path: Path
) -> None:
    grpo = {"temperature": temperature, "top_p": top_p, "max_new_tokens": 24}
    run = grpo_run(tmp_path, grpo_config(model, data, steps=3, grpo=grpo))
    launch(run, 1)
    assert metrics(run, "train/importance_ratio") == pytest.approx([1.0] * 3, abs=5e-4)
    assert metrics(run, "train/off_policy_fraction") == [0.0] * 3


@pytest.mark.soak("a training of its own; make test runs the formula, and plain GRPO")
def test_dynamic_sampling_draws_other_prompts_for_groups_that_teach_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    rewards = [{"regex": {"pattern": "^[a-m]"}}]
    run = grpo_run(
        tmp_path,
        grpo_config(model, data, steps=3, grpo={"variant": "dapo", "rewards": rewards, "max_tries": 6, "mask_truncated": False}),
    )
    launch(run, 2)
    rows = read_rollouts(run)
    states = Counter(rows["state"].to_pylist())
    assert states["used"] == 3 * 16
    assert states["dropped"] % 4 == 0
    assert states["dropped"] > 0
    groups: dict[tuple[int, int], list[float]] = {}
    used = set()
    for row in rows.to_pylist():
        groups.setdefault((row["slot"], row["attempt"]), []).extend(row["rewards"])
        if row["state"] == "used":
            used.add((row["slot"], row["attempt"]))
    for key, values in groups.items():
        last_try = key[1] == 5
        assert (len(set(values)) > 1) == (key in used) or last_try


@pytest.mark.soak("another run of two ranks; make test kills runs at staleness 0")
def test_stale_steps_share_a_policy_and_survive_a_kill(model: Path, data: Path, tmp_path: Path) -> None:
    config = grpo_config(model, data, steps=8, checkpoint={"every_steps": 4}, grpo={"max_staleness": 2})
    whole, killed = grpo_run(tmp_path, config), grpo_run(tmp_path, config)
    launch(whole, 2)
    assert metrics(whole, "train/staleness") == [0, 1, 2, 0, 1, 2, 0, 1]
    ratios = metrics(whole, "train/importance_ratio")
    assert ratios[0] == pytest.approx(1, abs=1e-4)
    assert ratios[2] != pytest.approx(1, abs=1e-4)
    group = start(killed, 2, TEST_HOOK="stall_rollouts", TEST_STALL="commit:after:6:0")
    group.until((killed.path / "stalled").exists)
    group.kill()
    launch(killed, 2)
    assert equal(weights(whole), weights(killed))
    check_used_once(killed, 8)


@pytest.mark.soak("another run of two ranks; make test kills while answers are drawn")
def test_asked_to_stop_while_it_draws_it_saves_and_goes_on(model: Path, data: Path, tmp_path: Path) -> None:
    config = grpo_config(model, data, steps=5, checkpoint={"every_steps": 100}, grpo={"chunk": 1})
    whole, stopped = grpo_run(tmp_path, config), grpo_run(tmp_path, config)
    launch(whole, 2)
    group = start(stopped, 2, TEST_HOOK="stop_while_drawing")
    assert group.wait() == [85, 85], log_of(stopped)
    assert [event["step"] for event in events(stopped, "stopped")] == [2]
    (stopped.path / "stop-here").unlink()
    launch(stopped, 2)
    assert equal(weights(whole), weights(stopped))
    check_used_once(stopped, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grpo": {"group_size": 5}}, "16 answers are not a multiple of grpo.group_size, 5"),
        ({"grpo": {"rewards": ["exact_mach"]}}, "did you mean 'exact_match'"),
        ({"grpo": {"rewards": [{"regex": {}, "length": {}}]}}, "must name one reward"),
        ({"seq_len": 8}, "leaves no token of seq_len, 8, for a prompt"),
    ],
)
def test_keys_that_do_not_fit_are_named_at_submission(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(AlignConfig, grpo_config(Path("m"), Path("d"), **changes))


def test_the_example_is_a_configuration() -> None:
    config = load_config(AlignConfig, read_job_file(Path(jobs.__file__).parent / "configs/grpo.yaml", "align"))
    assert isinstance(config, AlignConfig)
    assert [(reward.label, reward.weight) for reward in config.grpo.rewards] == [("math_verify", 1.0), ("regex", 0.2)]
    assert AlignConfig.model_validate(config.model_dump(mode="json")) == config


def test_workers_draw_what_ranks_would_and_a_killed_one_is_replaced(model: Path, data: Path, tmp_path: Path) -> None:
    keys = {"steps": 1, "validation_data": str(data), "validation": {"max_sequences": 3}}
    by_ranks = grpo_run(tmp_path, grpo_config(model, data, **keys, grpo={"chunk": 2}))
    by_workers = grpo_run(tmp_path, grpo_config(model, data, **keys, grpo={"chunk": 2, "workers": 1}))
    launch(by_ranks, 2)
    group = start(by_workers, 2)
    group.until(lambda: bool(workers_of(group)))  # later kills are those of chaos/test_grpo.py
    (worker,) = workers_of(group)
    worker.kill()
    assert group.wait() == [0, 0], log_of(by_workers)
    assert not psutil.pid_exists(worker.pid)
    assert len(events(by_workers, "rollout_worker_lost")) == 1
    assert equal(weights(by_ranks), weights(by_workers))
    assert metrics(by_ranks, "validation/reward") == metrics(by_workers, "validation/reward")
    assert len(metrics(by_ranks, "validation/reward")) == 1
    check_used_once(by_workers, 1)


def workers_of(group: Ranks) -> list[psutil.Process]:
    """The rollout workers of a node's first rank."""
    results = []
    for child in psutil.Process(group.processes[0].pid).children():
        with suppress(psutil.Error):
            results += [child] if "ropewalk.jobs.training.align.grpo.worker" in child.cmdline() else []
    return results


@pytest.mark.soak("half a minute; make test runs test_workers_draw_what_ranks_would_and_a_killed_one_is_replaced")
def test_workers_draw_while_ranks_learn(model: Path, data: Path, tmp_path: Path) -> None:
    run = grpo_run(tmp_path, grpo_config(model, data, steps=8, grpo={"workers": 1, "max_staleness": 2}))
    group = start(run, 1)
    group.until(lambda: 3 in {line["step"] for line in run.read_metrics()})
    group.kill()
    launch(run, 1)
    check_used_once(run, 8)
    staleness = [row["train/staleness"] for row in last_lines(run)]
    assert staleness[0] == 0
    assert 0 < max(staleness) <= 2
    rows = read_rollouts(run).to_pylist()
    assert all(0 <= row["step"] - row["policy_version"] <= 2 for row in rows)


@pytest.mark.soak("another run of two ranks; make test trains all weights, and adapters by themselves")
def test_an_adapter_learns_from_rewards_and_a_kill_changes_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    config = grpo_config(
        model, data, steps=4, checkpoint={"every_steps": 2}, lora={"rank": 4}, grpo={"kl": 0.01, "variant": "gspo"}
    )
    whole, killed = grpo_run(tmp_path, config), grpo_run(tmp_path, config)
    launch(whole, 2)
    assert metrics(whole, "train/kl")[0] == pytest.approx(0, abs=1e-6)
    assert metrics(whole, "train/kl")[-1] > 0
    group = start(killed, 2, TEST_HOOK="stall_rollouts", TEST_STALL="put:after:6:1")
    group.until((killed.path / "stalled").exists)
    group.kill()
    launch(killed, 2)
    assert equal(weights(whole), weights(killed))
    check_used_once(killed, 4)
