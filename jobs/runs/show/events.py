"""Every event that a run can record, as a line for people. A test requires a row for each name that the code records."""

import signal
import time
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from ropewalk.cluster.errors import EXIT_LOST_PEER
from ropewalk.cluster.text import counted, format_parameters
from ropewalk.jobs.runs.show.hangs import places

# Name → format string over the event's fields; empty: bookkeeping, which nobody is shown.
# What may stand behind a colon in braces, besides Python's own formats, is in `_Line`.
EVENTS: dict[str, str] = {
    # attempts and nodes
    "attempt_ended": "attempt {attempt} ended: {state} ({cause})",
    "gpus_shared": "too few GPUs of this machine are free: {devices} are shared with another run; on a laptop nobody queues",
    "group_formed": "group {group} formed over {nodes:count node}",
    "node_asked_to_leave": "node {node} is being released",
    "node_left": "node {node} left; the others go on",
    "node_left_early": "node {node} was asked to stop before its ranks had begun",
    "node_lost": "node {node} died ({signal:or lost})",
    "node_returned": "node {node} is available",
    "nodes_asked_for": "asked for {count:count more node}",
    "pods_asked_for": "asked Kubernetes for {count:count pod} in all",
    "other_version": "node {node} has ropewalk {here}; it was submitted with {wanted}",
    "rank_lost": "rank {rank} on node {node} {exit_code:exit}",
    "ranks_hung": "stood still for {seconds:.1f} s at step {step}: {ranks:places}; all stacks: {stacks}",
    "resumed_by_user": "resumed by the user",
    "scaled_by_user": "scaling to {nodes:count node}, at the user's request",
    "stop_requested": "node {node} was asked to stop",
    "stopped_without_word": "the program of rank {rank} exited with {exit_code} when it was asked to stop",
    "submit_failed": "submission failed: {error}",
    # training
    "anomaly": "step {step}: {problem} (loss {loss}); policy: {policy}",
    "audited": "",
    "bad_checkpoint": "the checkpoint of step {step} does not verify: {problems}",
    "checkpoint": "",
    "early_stop": "stopped early at step {step}",
    "evaluated": "",
    "exported": "",
    "first_step": "",
    "initialized_from": "",
    "measured": "",
    "no_validation": "",
    "resumed": "resumed from the checkpoint of step {step} on {world_size:count rank}",
    "started_from": "began with the checkpoint of step {step} of {run}",
    "stopped": "saved and stopped at step {step}",
    # fine-tuning
    "conversations": "learns from {train} conversations in {samples} samples, {validation} held out, {too_long} too long",
    "prepared": "prepared {conversations} conversations, rejected {rejected} {reasons}: {path}",
    # the loop back
    "approval_awaited": "round {round}: {candidate} has passed its gate and needs approval: `ropewalk approve RUN`",
    "collected": "collected {new:count new conversation}, {replay} earlier ones mixed in, {pairs:count pair}",
    "round_started": "round {round} started: {reason}",
    "round_ended": "round {round}: {outcome}: {message}",
    # distillation
    "pruned": "cut out of its teacher: {parameters_after:,} of {parameters_before:,} parameters, layers {layers}",
    # alignment
    "length_bias": "the preferred answer is the longer one in {share_longer:.0%} of the pairs (mean {chosen:.0f}, the other"
    " {rejected:.0f} tokens): length itself may be learnt; compare reward_accuracy_longer with reward_accuracy_shorter",
    "pairs_prepared": "",
    "pairs_rejected": "{total:count record} left out of the data: {reasons:parameters}",
    "prompts_rejected": "{total:count record} of the prompts left out: {reasons:parameters}",
    "rollout_worker_lost": "rollout worker {worker} ended with {exit_code}, and was replaced",
    "reward_failed": "step {step}: reward {reward} failed for {answers} of {of} answers: {outcome}",
    # preprocessing
    "actors": "",
    "actors_died": "",
    "damaged_inputs": "",
    "elements_died": "",
    # serving
    "aliases_reverted": "version {version} was refused: {changes}",
    "canary_ended": "version {version} no longer gets a share of the traffic",
    "canary_passed": "version {version} passed its canary: {errors} of {requests:count request} failed",
    "canary_started": "version {version} gets {share:.0%} of the traffic",
    "handover_started": "handing over to {successor}; serving continues until it answers",
    "handover_failed": "handover failed: {error}",
    "listens": "listening at {address}",
    "serving_stopped": "stopped serving with {open:count request} open",
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
    signal.SIGBUS: "lost a file under its memory map (SIGBUS): a file was cut short, or /dev/shm is full",
    signal.SIGTERM: "was ended (SIGTERM)",
    signal.SIGABRT: "aborted in native code (SIGABRT)",
}


class _Line(Formatter):
    """Fills a format string of EVENTS: a missing field is None, and some formats are words of their own."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get(str(key))

    def format_field(self, value: Any, format_spec: str) -> str:
        kind, _, word = format_spec.partition(" ")
        match kind:
            case "count":
                return counted(value or 0, word)
            case "or":
                return str(value or word)
            case "because":
                return f": {value}" if value else ""
            case "lower":
                return str(value).lower()
            case "exit":
                return exit_words(value)
            case "places":
                return places(value or [])
            case "parameters":
                return format_parameters(value or {})
        return "?" if value is None else str(super().format_field(value, format_spec))


def tell(event: Mapping[str, Any]) -> str | None:
    """An event as a line for people, with its time; None for bookkeeping, and for events of another program."""
    form = EVENTS.get(str(event.get("event")))
    if not form:
        return None
    return f"{time.strftime('%H:%M:%S', time.localtime(event.get('time', 0)))}  {_Line().vformat(form, (), event)}"


def exit_words(code: Any) -> str:
    """How a rank ended, by its exit code; a negative one is the signal that killed it."""
    if isinstance(code, int) and code < 0:
        name = signal.Signals(-code)
        return SIGNALS.get(name, f"died of {name.name}")
    if code == EXIT_LOST_PEER:
        return "left, because a rank it talks to was gone"
    return f"ended with exit code {code}"
