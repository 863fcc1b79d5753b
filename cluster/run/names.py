"""Names of the files in a run directory, with their content. A job's own files are listed by its view."""

# in the run directory
RECORD = "run.yaml"
CHANGES = "changes.json"
CODE_DIFF = "code.diff"
METRICS = "metrics.jsonl"
HISTOGRAMS = "histograms.jsonl"
EVENTS = "events"
PROGRESS = "progress.json"
REQUESTS = "requests.json"
CHECKPOINTS = "checkpoints"
TABLES = "tables"
PICTURES = "pictures"
NOTICES = "notify"
WANDB = "wandb"
WANDB_OFFLINE = "wandb/offline.json"  # lines that are in the offline files
WANDB_ADDRESS = "wandb/address.json"  # address of the run's W&B page: {address}
ATTEMPTS = "attempts"
PREPARED_DATA = "data.json"
PREPARED_FOLDER = ".prepared"  # beside the runs: data sets prepared from conversations, shared by runs
STORE_VARIABLE = "ROPEWALK_STORE"  # names another folder instead of the next one
LATER_FOLDER = ".attempts"  # beside the runs: their attempts after the first, a file a machine and user, for listings
SUBMISSIONS_FOLDER = ".submissions"  # beside the runs: submissions of other machines, by id
ARRIVING_FOLDER = ".arriving"  # beside the runs: contents of runs that move here, a folder a run
LEDGER_FOLDER = ".nodes"  # beside the runs: failures of machines, a file a cluster and user
STORE_FOLDER = ".hub"  # beside the runs: models and data fetched from the hub

# of the local backend, in the run directory
SUPERVISOR = "supervisor.json"
QUEUE = "queue.json"
QUEUE_PROCESS = "queue-process.json"

RUN_FILES = {
    RECORD: "job, configuration, resources, code, versions; written once",
    CHANGES: "changes of the record by resumes: [{attempt, config, code, ...}]",
    CODE_DIFF: "uncommitted changes of the submitted code",
    "code.*.diff": "uncommitted changes of the code that `resume --code` took, by attempt",
    METRICS: "all metrics, one JSON object per line with `step`, `attempt` and `time`",
    HISTOGRAMS: "histograms by layer, one JSON object per line: step, edges, counts by name",
    EVENTS: "folder of events, one file per machine",
    PROGRESS: "progress of a long job: {stage, done, total, unit, rates}",
    REQUESTS: "requests of users: {cancel, nodes, inspections, moving_to, start_lock}",
    CHECKPOINTS: "folder of checkpoints, `step-00000100`; one is complete only with its `manifest.json`",
    TABLES: "tables for people and trackers: NAME.json of {columns, rows}",
    PICTURES: "pictures for people and trackers: NAME.png",
    WANDB: "files of Weights & Biases, and `address.json` with the address of the run's page",
    NOTICES: "notifications: `outbox.jsonl`, and `sent.jsonl` with what each receiver has accepted",
    "trackers": "files of other trackers, one folder each",
    "curves.png": "plot of the metrics, written by `ropewalk show RUN --plot`",
    ATTEMPTS: "one folder per attempt, `0001`",
    SUPERVISOR: "local backend: process that supervises the run, {pid, created}",
    "supervisor.log": "local backend: output of the supervisor",
    QUEUE: "local backend, first run of a submission of many: {runs, at_once}",
    QUEUE_PROCESS: "local backend, beside the queue: process that starts the runs",
    "queue.log": "local backend, beside the queue: its output",
}

# in an attempt's folder
ATTEMPT = "attempt.json"
OUTCOME = "outcome.json"
RESULT = "result.json"
FATAL = "fatal.json"
AGENTS = "agents.jsonl"
RAY_HEAD = "ray.json"
RAY_DRIVER = "driver.json"
LOGS = "logs"
GROUPS = "groups"
NODES = "nodes"
ERRORS = "errors"
STACKS = "stacks"
INSPECTIONS = "inspections"
SUCCESSOR = "successor"
ENDED = "ended"
GROUP_KEY = ".group.key"
GROUP_SERVERS = "group-servers.jsonl"

ATTEMPT_FILES = {
    ATTEMPT: "details that the backend recorded when it opened the attempt: handle, resources, keys of its own",
    OUTCOME: "result of the attempt: state, exit code, cause, times, results",
    RESULT: "results that the job returned",
    FATAL: "an error that a retry cannot fix: every agent of the attempt exits",
    AGENTS: "one line per agent: node, address, process",
    RAY_HEAD: "address of the attempt's Ray cluster",
    RAY_DRIVER: "exit code of the Ray driver",
    LOGS: "output of each node and rank: `node-0.log`, `rank-0.log`, `sidecar.log`; beyond 64 ranks those of a node share"
    " `ranks-0.log` (not rank 0), in lines that begin with `rank N | `",
    GROUPS: "one mark for each formation of the ranks; `000001.reserved`: number that a group server has reserved",
    NODES: "files of each node's agent: samples of CPU, memory and GPUs; exit report",
    ERRORS: "errors that ended ranks and agents",
    STACKS: "stacks of ranks that hung, one file a node",
    INSPECTIONS: "answers to `stacks`, `profile` and `memory`, one folder a request",
    SUCCESSOR: "mark of the next attempt, which locks this one out",
    ENDED: "empty until `outcome.json` exists",
    GROUP_KEY: "key that signs the messages of the group",
    GROUP_SERVERS: "one line per process that forms groups of ranks: its address; that of the highest term counts",
}

OUT_OF_MEMORY = "out_of_memory"  # event: a group of ranks ended for lack of memory
