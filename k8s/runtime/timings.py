"""Timeouts and polling intervals of a run's pods, in seconds."""

from ropewalk.cluster.membership.protocol import SILENCE_SECONDS

# --- the connection between a pod and the coordinator
LOST_SECONDS = SILENCE_SECONDS  # without a message: the other side is dead or disconnected
COORDINATOR_START_SECONDS = 30.0  # a starting coordinator may be silent this long
RETRY_CONNECT_SECONDS = 0.5  # before the next connection to a coordinator that has not answered
FAREWELL_SECONDS = 5.0  # for delivering the coordinator's last message to all pods

# --- a pod
POLL_SECONDS = 0.1  # between two checks of a pod's children, signals and connection
SEEK_SECONDS = 0.05  # between two looks at the run directory for a leader
FAR_SEEK_SECONDS = 1.0  # the same of pods that are not the first to lead
ORPHAN_SECONDS = 5.0  # for an agent to save after its coordinator has disappeared
RESTART_COORDINATOR_SECONDS = 5.0  # before a crashed coordinator is restarted in the same pod

# --- leader election
ELECTION_QUERY_SECONDS = 1.0  # between two queries of the API server, of pods that are not the first to lead
FIRST_POD_SECONDS = 10.0  # only the pod of index 0 may take the first term this long: it is the last to go when a run shrinks
FIRST_POD_START_SECONDS = 30.0  # the same if that pod has a node and is still starting
UNREACHABLE_SECONDS = 0.1  # before a leader that has closed its connections or is being deleted is replaced
TURN_SECONDS = 0.3  # additional wait of each pod compared with the one before it
UNPROVEN_SECONDS = 30.0  # before an unreachable leader is replaced without permission to query the API server
UNFINISHED_TERM_SECONDS = 10.0  # after this time an empty term file is that of a pod that died while writing it

# --- the nodes of an attempt
ALLOCATION_POLL_SECONDS = 0.05  # between two checks for enough pods
SETTLE_SECONDS = 2.0  # an elastic run with enough pods waits this long for more
SUCCEED_SECONDS = 0.5  # the same under another leader than the first: those that live know of it at once
LEADER_POLL_SECONDS = 2.0  # between two checks whether another pod leads the run
AGENT_POLL_SECONDS = 0.02  # between two checks whether an agent in another pod has ended
AGENT_END_SECONDS = 10.0  # for a pod to kill an agent
RESIZE_RETRY_SECONDS = 5.0  # before the Job is resized again if the API server did not answer

# --- pod replacement
REPLACEMENT_POLL_SECONDS = 0.3
REPLACEMENT_AWAY_POLL_SECONDS = 5.0  # while the API server does not answer, or refuses
CRASH_SECONDS = 5.0  # for a node to notice that its pod has ended
MACHINE_POLL_SECONDS = 3.0  # once nothing else can change
MACHINE_WATCH_SECONDS = 90.0  # a dead pod is watched this long: by default Kubernetes gives up its node after 60 s
BACKDATED_WATCH_SECONDS = 20.0  # a backdated pod is watched this long, because its node may overwrite the status once more

# --- the end of a run
OUTCOME_PATIENCE_SECONDS = 120.0  # for retries while the API server does not answer
OUTCOME_RETRY_SECONDS = 1.0

LOG_REPEAT_SECONDS = 30.0  # between two log lines about the same wait
