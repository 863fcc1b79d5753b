"""How long the pods of a run wait for each other, and how often they look. In seconds."""

# --- the connection between a pod and the coordinator
HEARTBEAT_SECONDS = 1.0
LOST_SECONDS = 6.0  # of silence: the other side is dead or cut off
CONNECT_SECONDS = 1.0
COORDINATOR_START_SECONDS = 30.0  # how long a coordinator that was just started may say nothing
RETRY_CONNECT_SECONDS = 0.5  # before a coordinator that has not answered is called again
FAREWELL_SECONDS = 5.0  # how long the coordinator waits until all pods have heard its last message

# --- a pod
POD_TICK_SECONDS = 0.1  # between two looks of a pod at its children, its signals and its connection
ORPHAN_SECONDS = 5.0  # how long an agent may save when its coordinator has gone without a word
RESTART_COORDINATOR_SECONDS = 5.0  # before a coordinator is started again in a pod where one has crashed

# --- leader election
ELECTION_ASK_SECONDS = 1.0  # between two questions to the API server
FIRST_POD_SECONDS = 10.0  # how long the pod of index 0 alone may take the first term: it is the last to go when a run shrinks
FIRST_POD_START_SECONDS = 30.0  # the same where it has a node already, and is on its way
UNREACHABLE_SECONDS = 1.5  # how long a leader that refuses connections, or is being deleted, may be unreachable
TURN_SECONDS = 0.3  # by which a pod waits longer than the one before it
UNPROVEN_SECONDS = 30.0  # how long a leader may be unreachable where the API server may not be asked
UNFINISHED_TERM_SECONDS = 10.0  # after which a term without content is that of a pod that died as it wrote

# --- the nodes of an attempt
ALLOCATION_POLL_SECONDS = 0.1  # between two looks whether enough pods are there
SETTLE_SECONDS = 2.0  # how long an elastic run that has enough pods waits for one more
LEADER_LOOK_SECONDS = 2.0  # between two looks whether another pod leads the run
AGENT_POLL_SECONDS = 0.02  # between two looks whether an agent in another pod has ended
AGENT_END_SECONDS = 10.0  # how long a pod may take to kill an agent
RESIZE_RETRY_SECONDS = 5.0  # before the Job is resized again where the API server was away

# --- pod replacement
REPLACEMENT_POLL_SECONDS = 0.3
REPLACEMENT_AWAY_POLL_SECONDS = 5.0  # while the API server is away, or refuses
CRASH_SECONDS = 5.0  # how long a node may take to notice that its pod has ended
BACKDATED_WATCH_SECONDS = 20.0  # how long a backdated pod is watched: its node may write its own view of it once more

# --- the end of a run
OUTCOME_PATIENCE_SECONDS = 120.0  # how long an API server that is away is waited for
OUTCOME_RETRY_SECONDS = 1.0

LOG_REPEAT_SECONDS = 30.0  # between two log lines about the same wait
