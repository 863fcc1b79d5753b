"""Names of the files in a run directory that the program reads; all other files are logs."""

# in the run directory
RECORD = "run.yaml"  # job, configuration, resources, code, versions; written once
CHANGES = "changes.json"  # changes of the record by resumes: [{attempt, config, code, ...}]
CODE_DIFF = "code.diff"  # uncommitted changes of the submitted code
METRICS = "metrics.jsonl"  # all metrics, one JSON object per line
HISTOGRAMS = "histograms.jsonl"  # histograms by layer, one JSON object per line: step, edges, counts by name
EVENTS = "events"  # folder of events with one file per machine
PROGRESS = "progress.json"  # progress of a long job: {stage, done, total, unit, rates}
REQUESTS = "requests.json"  # requests of users: {cancel, nodes}
CHECKPOINTS = "checkpoints"
TABLES = "tables"  # tables for people and trackers: NAME.json of {columns, rows}
PICTURES = "pictures"  # NAME.png
PREPARED_DATA = "data.json"  # the data set prepared from the run's data: {path, hash}
PREPARED_FOLDER = ".prepared"  # beside the runs: data sets prepared from conversations, shared by runs
WANDB = "wandb"
WANDB_ADDRESS = "wandb/address.json"  # address of the run's W&B page: {address}
ATTEMPTS = "attempts"

# of the local backend, in the run directory
SUPERVISOR = "supervisor.json"  # the supervisor's process: {pid, created}
QUEUE = "queue.json"  # in the first run of a submission of many runs: {runs, at_once}
QUEUE_PROCESS = "queue-process.json"  # beside it: the process that starts the runs' supervisors

# in an attempt's folder
ATTEMPT = "attempt.json"  # details that the backend recorded when it opened the attempt: handle, resources, keys of its own
OUTCOME = "outcome.json"  # result of the attempt
RESULT = "result.json"  # results that the job returned
FATAL = "fatal.json"  # an error that a retry cannot fix: every agent of the attempt exits
AGENTS = "agents.jsonl"  # one line per agent: node, address, pid of the process that started it
RAY_HEAD = "ray.json"  # address of the attempt's Ray cluster
RAY_DRIVER = "driver.json"  # exit code of the Ray driver
LOGS = "logs"
GROUPS = "groups"  # one successor mark for each formation of the ranks
NODES = "nodes"  # files of each node's agent: samples, exit report
ERRORS = "errors"  # errors that ended ranks and agents
STACKS = "stacks"  # stacks of hung ranks
