"""The names of all files in a run's directory that this program reads back; what is missing here is a log."""

# in the run's directory
RECORD = "run.yaml"  # what the run is; written once
CODE_DIFF = "code.diff"  # the uncommitted changes of the code that the run was submitted with
METRICS = "metrics.jsonl"  # all metrics, a JSON object a line
HISTOGRAMS = "histograms.jsonl"  # by layer, a JSON object a line: step, edges, counts by name
EVENTS = "events"  # a folder with one file a machine: what happened and when
PROGRESS = "progress.json"  # where a long job stands now: {stage, done, total, unit, rates}
REQUESTS = "requests.json"  # what users ask of the run: {cancel, nodes}
CHECKPOINTS = "checkpoints"
TABLES = "tables"  # what there is to read, for people and trackers: NAME.json of {columns, rows}
PICTURES = "pictures"  # NAME.png
PREPARED_DATA = "data.json"  # the data set that was made of the run's data: {path, hash}
WANDB = "wandb"
WANDB_ADDRESS = "wandb/address.json"  # where a person sees the run in W&B: {address}
ATTEMPTS = "attempts"

# of the local backend, in the run's directory
SUPERVISOR = "supervisor.json"  # the supervisor's process: {pid, created}
QUEUE = "queue.json"  # in the first run of a submission of many: {runs, at_once}
QUEUE_PROCESS = "queue-process.json"  # beside it, the process that starts their supervisors

# in an attempt's folder
ATTEMPT = "attempt.json"  # what the backend wrote as it opened the attempt: handle, resources, its own keys
OUTCOME = "outcome.json"  # how the attempt ended
RESULT = "result.json"  # what the job returned
FATAL = "fatal.json"  # an error that no retry can mend: every agent of the attempt leaves
AGENTS = "agents.jsonl"  # one line an agent: node, address, pid of the process that started it
RAY_HEAD = "ray.json"  # the address of the attempt's Ray
RAY_DRIVER = "driver.json"  # the exit code of the Ray driver
LOGS = "logs"
GROUPS = "groups"  # one mark for each formation of the ranks
NODES = "nodes"  # what each node's agent says of itself: samples, its exit code
ERRORS = "errors"  # what ranks and agents wrote as they gave up
STACKS = "stacks"  # of ranks that hung
