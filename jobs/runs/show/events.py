"""Texts of all events that a run can record. A test requires a row for each event name in the code."""

import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter
from typing import Any

from ropewalk.cluster.errors import EXIT_LOST_PEER
from ropewalk.cluster.text import counted, format_parameters
from ropewalk.jobs.runs.show.hangs import describe_activities, describe_locations
from ropewalk.jobs.runs.show.stragglers import phase_words

# Name → format string over the event's fields; empty: not shown.
# `_Line` defines additional format specifications, such as `{nodes:count node}`.
EVENTS: dict[str, str] = {
    # attempts and nodes
    "attempt_ended": "attempt {attempt} ended: {state} ({cause})",
    "gpus_idle": "no GPU was used for {minutes:.0f} minutes",
    "idle_stop": "ends, since no GPU was used for {minutes:.0f} minutes (resources.idle_minutes)",
    "gpus_shared": "too few GPUs of this machine are free: {devices} are shared with another run; the local backend has no queue",
    "gpus_taken": "computes on GPU {devices} of this machine",
    "group_formed": "group {group} formed on {nodes:count node}{spare:more spare node}",
    "mistake_repeated": "the same error twice at the start: not tried again",
    "node_asked_to_leave": "node {node} is being released",
    "node_checked": "",
    "node_finding": "check of node {node} ({host}): {check}: {value}; {remedy}",
    "node_left": "node {node} left; the others go on",
    "node_left_early": "node {node} was stopped before its ranks had started",
    "node_lost": "node {node} died ({signal:or lost})",
    "node_returned": "node {node} is available",
    "node_silent": "node {node} sent nothing for 2 s: dead, stopped, or cut off; its group was replaced",
    "nodes_asked_for": "requested {count:count more node}",
    "pods_asked_for": "requested {count:count pod} in total from Kubernetes",
    "port_not_opened": "the NetworkPolicy of the served port was not created, so a policy of the namespace may keep clients"
    " away: {error}",
    "out_of_memory": "group {group} ran out of memory",
    "other_version": "node {node} has ropewalk {here}; the run was submitted with {wanted}",
    "rank_lost": "rank {rank} on node {node} {exit_code:exit}",
    "ranks_spare": "{spare:count rank} without work ({ranks}): only {computing:count rank} divide into equal copies of the model",
    "ranks_hung": "replaced ranks without progress for {seconds:.1f} s at step {step}: {ranks:places}; all stacks: {stacks}",
    "ranks_slow": "no progress for {seconds:.0f} s at step {step}, but on node {node} {ranks:activities};"
    " nothing is replaced before {allowed_seconds:.0f} s",
    "moved": "moved to {to}",
    "moved_here": "moved here from {source}",
    "resumed_by_user": "resumed by the user",
    "changed_by_user": "changed by the user from attempt {attempt} on: {changed}",
    "scaled_by_user": "scaling to {nodes:count node}, at the user's request",
    "start_lock_granted": "may start; its siblings do not",
    "start_lock_requested": "has nodes, and waits until `ropewalk sync --follow` lets it start in place of its siblings",
    "stop_requested": "stop requested on node {node}",
    "stopped_without_word": "the program of rank {rank} exited with {exit_code} after the stop, without saving",
    "submit_failed": "submission failed: {error}",
    # training
    "anomaly": "step {step}: {problem} (loss {loss}); policy: {policy}",
    "audited": "",
    "bad_checkpoint": "the checkpoint of step {step} does not verify: {problems}",
    "checkpoint": "",
    "corruption": "step {step}: silent corruption: {what}{rank:of rank}{host:on}",
    "corruption_blamed": "the steps up to {step} were done again: {rank:blamed}{host:on}",
    "early_stop": "stopped early at step {step}",
    "evaluated": "",
    "exported": "",
    "first_step": "",
    "initialized_from": "",
    "measured": "",
    "memory_copy_failed": "the state was not copied to the memory of the nodes: {problem}",
    "memory_interval": "copies the state to the memory of the nodes every {every_steps:count step}: a copy takes"
    " {copy_seconds:.3f} s, a step {step_seconds:.3f} s",
    "micro_batch": "micro-batches of up to {size} on {world_size:count rank}",
    "no_validation": "",
    "not_certified": "step {step} was done again from step {restored} in {tier}, and its loss is {loss} instead of {recorded}",
    "resumed": "resumed from the checkpoint of step {step}{tier:in} on {world_size:count rank}",
    "straggler": "rank {rank} on {host} is {share:.0%} slower than the others in {phase:phase}{cause:because};"
    " without it the run is {rate_without:.2f} times as fast",
    "straggler_ended": "rank {rank} on {host} is as fast as the others again",
    "started_from": "started from the checkpoint of step {step} of {run}",
    "time_counted": "",
    "stopped": "saved and stopped at step {step}",
    "whole_logits": "computes whole logits, which takes more memory: {reason}",
    # fine-tuning
    "conversations": "trains on {train} conversations in {samples} samples; {validation} held out, {too_long} too long",
    "prepared": "prepared {conversations:count conversation}{reasons:rejected}: {path}",
    # the loop back
    "approval_awaited": "round {round}: {candidate} has passed its gate and needs approval: `ropewalk approve RUN`",
    "collected": "collected {new:count new conversation}, {replay} earlier ones mixed in, {pairs:count pair}",
    "round_started": "round {round} started: {reason}",
    "round_ended": "round {round}: {outcome}: {message}",
    # distillation
    "pruned": "pruned from the teacher: {parameters_after:,} of {parameters_before:,} parameters, layers {layers}",
    # alignment
    "length_bias": "the chosen answer is the longer one in {share_longer:.0%} of the pairs (mean {chosen:.0f}, rejected"
    " {rejected:.0f} tokens): the model may learn length; compare reward_accuracy_longer with reward_accuracy_shorter",
    "pairs_prepared": "",
    "pairs_rejected": "{total:count record} of the data rejected: {reasons:parameters}",
    "prompts_rejected": "{total:count record} of the prompts rejected: {reasons:parameters}",
    "rollout_worker_lost": "rollout worker {worker} exited with {exit_code} and was replaced",
    "reward_failed": "step {step}: reward {reward} failed for {answers} of {of} answers: {outcome}",
    # preprocessing
    "actors": "",
    "actors_died": "",
    "damaged_inputs": "",
    "elements_died": "",
    "slow_tokenizer": "encoding with tokenizers, which is slower: {reason}",
    # serving
    "aliases_reverted": "version {version} was refused: {changes}",
    "registry_not_pruned": "old versions were not removed, and are tried again after the next round: {error}",
    "versions_removed": "removed from the registry: {versions}",
    "registry_unreadable": "the registry cannot be read; the serving versions stay: {error}",
    "canary_ended": "version {version} no longer gets a share of the traffic",
    "canary_passed": "version {version} passed its canary: {errors} of {requests:count request} failed",
    "canary_started": "version {version} gets {share:.0%} of the traffic",
    "handover_started": "handing over to {successor}; serving continues until it answers",
    "handover_failed": "handover failed: {error}",
    "listens": "listening at {address}",
    "serving_stopped": "stopped serving with {open:count request} open",
    "ray_restarted": "Ray ended on node {node} and was started again",
    "serving_part_died": "the {part} exited with code {exit_code} and was restarted",
    "version_gone": "version {version} was unloaded",
    "version_loading": "version {version} is loading",
    "version_ready": "version {version} is ready",
    "version_refused": "version {version} was refused: {cause}; serving: {serves:or nothing}",
    "version_serves": "version {version} serves; previously {before:or nothing}",
    # sweeps
    "exploited": "trial {trial} continues from trial {from_trial}, step {step}, with {parameters:parameters}",
    "paused_by_sweep": "",
    "ray_lost": "the sweep's {cause}; its trials keep running",
    "sweep_cancelled": "",
    "sweep_ordered": "all trials are stopped: {order}",
    "trial_adopted": "trial {trial} is followed again",
    "trial_finished": "trial {trial} {state:lower} at step {step}{cause:because}",
    "trial_resumed": "trial {trial} resumes",
    "trial_started": "trial {trial} starts: {parameters:parameters}",
    "trial_stopped": "trial {trial} is stopped after step {step}",
}

SIGNALS = {
    signal.SIGKILL: "killed (SIGKILL): by the out-of-memory killer, a person or the scheduler",
    signal.SIGSEGV: "crashed in native code (segmentation fault)",
    signal.SIGBUS: "lost a memory-mapped file (SIGBUS): a file was truncated, or /dev/shm is full",
    signal.SIGTERM: "was terminated (SIGTERM)",
    signal.SIGABRT: "aborted in native code (SIGABRT)",
}


class _Line(Formatter):
    """Formatter of EVENTS: missing fields are None, and there are additional format specifications."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get(str(key))

    def format_field(self, value: Any, format_spec: str) -> str:
        kind, _, word = format_spec.partition(" ")
        match kind:
            case "count":
                return counted(value or 0, word)
            case "more":
                return f", {counted(value, word)}" if value else ""
            case "or":
                return str(value or word)
            case "because":
                return f": {value}" if value else ""
            case "of":
                return f" of {word} {value}" if value is not None else ", of an unknown rank"
            case "on":
                return f" on {value}" if value else ""
            case "blamed":
                return (
                    f"the corrupted state was that of rank {value}"
                    if value is not None
                    else "no rank had the state that they lead to"
                )
            case "in":
                return f" in {value}" if value else ""
            case "phase":
                return phase_words(str(value))
            case "lower":
                return str(value).lower()
            case "exit":
                return describe_exit(value)
            case "places":
                return describe_locations(value or [])
            case "activities":
                return describe_activities(value or [])
            case "rejected":
                reasons = ", ".join(f"{reason} {number}" for reason, number in (value or {}).items())
                return f", {sum(value.values())} rejected ({reasons})" if value else ""
            case "parameters":
                return format_parameters(value or {})
        return "?" if value is None else str(super().format_field(value, format_spec))


def format_event(event: Mapping[str, Any]) -> str | None:
    """Format an event with its time; return None for events that are not shown, and for unknown ones."""
    form = EVENTS.get(str(event.get("event")))
    if not form:
        return None
    return f"{time.strftime('%H:%M:%S', time.localtime(event.get('time', 0)))}  {_Line().vformat(form, (), event)}"


def without_cause(lines: Iterable[str], cause: str) -> list[str]:
    """Return lines of events without a cause that the reader has just read."""
    return [line.removesuffix(f" ({cause})") for line in lines]


def describe_exit(code: Any) -> str:
    """Describe the end of a rank by its exit code; a negative code is the signal that killed it."""
    if isinstance(code, int) and code < 0:
        name = signal.Signals(-code)
        return SIGNALS.get(name, f"died of {name.name}")
    if code == EXIT_LOST_PEER:
        return "left because a peer was lost"
    return f"exited with code {code}"
