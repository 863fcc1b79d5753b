"""What errors of programs mean, and what to do about them; the first that matches wins."""

import re
from typing import NamedTuple


class KnownError(NamedTuple):
    """A pattern of what a program says, what it means, and the remedy."""

    pattern: str
    meaning: str
    remedy: str


def known_error(text: str) -> KnownError | None:
    """The error of the table that a text is about; None if it is none of them."""
    return next((known for known in KNOWN if re.search(known.pattern, text)), None)


_SPACE = "free space where the run or its output lies, then resume"
_CODE = "mend the program and submit again; `ropewalk logs` shows the whole traceback"
_NODE = "resume with that node excluded, and tell the cluster's administrators"

KNOWN: tuple[KnownError, ...] = tuple(
    KnownError(*row)
    for row in (
        # --- memory
        (
            r"CUDA out of memory|OutOfMemoryError: CUDA|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
            "a GPU ran out of memory",
            "use a smaller micro-batch or sequence length, or more ranks (FSDP shards the model over them)",
        ),
        (
            r"[Bb]us error|SIGBUS|shared memory \(shm\)|unable to (open|allocate) shared memory",
            "shared memory (/dev/shm) is full, or a mapped file was cut short",
            "use fewer loader workers, or a node or pod with a larger /dev/shm",
        ),
        (
            r"MemoryError|Cannot allocate memory|std::bad_alloc|oom-kill|[Oo]ut of memory: Killed|Unable to allocate .* for an array",
            "a node ran out of memory",
            "ask for more resources.memory_gib, or fewer ranks or loader workers a node",
        ),
        # --- GPUs and their drivers
        (r"Duplicate GPU detected", "two ranks were given the same GPU", "let each rank take the GPU of its LOCAL_RANK"),
        (
            r"device-side assert|Assertion .*(srcIndex < srcSelectDimSize|t >= 0 && t < n_classes|index out of bounds)",
            "an index is out of range on the GPU, such as a token beyond the vocabulary or a label beyond the classes",
            "compare the tokenizer's vocabulary with the model's; run once on the CPU, where the error names the line",
        ),
        (
            r"illegal memory access|CUDA error: misaligned",
            "a GPU kernel touched memory that is not its own",
            "run with CUDA_LAUNCH_BLOCKING=1 to see which; custom kernels and mismatched versions are the usual cause",
        ),
        (
            r"[Uu]ncorrectable ECC|Xid.* (48|79|94|95)|fallen off the bus|CUDA error: unspecified launch failure|hardware stack error",
            "a GPU is broken",
            _NODE,
        ),
        (
            r"driver (version )?is (insufficient|too old)|forward compatibility was attempted",
            "the node's GPU driver is older than this build of torch",
            "install a build of torch for that driver's CUDA version",
        ),
        (
            r"no kernel image is available",
            "this build of torch has no code for that kind of GPU",
            "install a build for the GPU's architecture, or ask for another kind of node",
        ),
        (
            r"No CUDA GPUs are available|no CUDA-capable device|Found no NVIDIA driver|Torch not compiled with CUDA",
            "the program found no GPU",
            "ask for resources.gpus, and check that this Python's torch is a CUDA build",
        ),
        (
            r"invalid device ordinal",
            "the program asked for a GPU that the node has not given it",
            "take the GPU of LOCAL_RANK, and ask for as many resources.gpus as there are ranks on a node",
        ),
        (
            r"libcu\w+\.so|libcudnn\w*\.so|libnccl\.so|libnvrtc",
            "a CUDA library is missing or of another version",
            "install torch's own CUDA packages in one environment, and take others out of LD_LIBRARY_PATH",
        ),
        # --- ranks that talk to each other
        (
            r"mismatch between collectives|Detected mismatch|mismatched collective",
            "ranks called different collectives at the same time",
            "every rank must make the same calls in the same order; look for an `if rank == 0` around one",
        ),
        (
            r"[Ww]atchdog caught collective operation timeout|Timeout\(ms\)=|NCCL.*(timed out|timeout)|collective .*timed out",
            "a collective timed out: one rank did not come, or the network stands still",
            "`ropewalk why` names the first rank or node that was lost; else look which rank is behind the others",
        ),
        (
            r"ncclSystemError|ncclRemoteError|ncclUnhandledCudaError|unhandled system error|NCCL error",
            "NCCL failed: a peer is gone, or its network is not set up",
            "look for the first rank that was lost; NCCL_DEBUG=INFO says more, NCCL_SOCKET_IFNAME names the network",
        ),
        (
            r"Address already in use|EADDRINUSE",
            "a port is taken by another program",
            "leave MASTER_PORT to the launcher, which draws a free one; then resume",
        ),
        (
            r"environment variable (RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|LOCAL_RANK) expected|KeyError: '(RANK|WORLD_SIZE|LOCAL_RANK)'",
            "the program wants torchrun's variables, and was not started as ranks",
            "set launch=ranks",
        ),
        (
            r"Default process group has not been initialized",
            "the program uses torch.distributed before it is set up",
            "call torch.distributed.init_process_group first",
        ),
        (
            r"Expected to have finished reduction in the prior iteration",
            "some parameters had no part in the loss, and DistributedDataParallel waits for their gradients",
            "pass find_unused_parameters=True, or use all parameters in each step",
        ),
        (
            r"connectFullMesh|DistNetworkError|Gloo|gloo|Connection (closed|reset) by peer|[Bb]roken pipe",
            "ranks lost touch with each other",
            "look for the first rank or node that was lost",
        ),
        # --- torch's own complaints
        (
            r"[Ss]ize mismatch for|Missing key\(s\) in state_dict|Unexpected key\(s\) in state_dict",
            "the checkpoint is of another model",
            "load it into the model that it was saved from, or begin anew",
        ),
        (
            r"PytorchStreamReader|failed finding central directory|unexpected EOF, expected|not a ZIP archive",
            "a checkpoint file is cut short or damaged",
            "go on from the one before; ropewalk.commit_checkpoint keeps such from being taken",
        ),
        (
            r"Weights only load failed|WeightsUnpickler",
            "torch.load refuses what is more than tensors in that file",
            "save plain tensors, or allow the classes by torch.serialization.add_safe_globals for files that you trust",
        ),
        (
            r"shapes cannot be multiplied|must match the size of tensor|size of tensor a|Expected size|shape '.*' is invalid for input",
            "tensors have shapes that do not fit",
            _CODE,
        ),
        (
            r"Expected all tensors to be on the same device|found at least two devices",
            "tensors lie on different devices",
            "move model and batch to the same device",
        ),
        (
            r"expected scalar type|must have the same dtype|mat1 and mat2 must have the same dtype",
            "tensors have different types",
            "cast them to one type, or use autocast",
        ),
        (
            r"does not require grad and does not have a grad_fn",
            "the loss does not depend on any trainable parameter",
            "check what is frozen, and for a `detach` or `no_grad` on the way to the loss",
        ),
        (
            r"backward through the graph a second time",
            "the same graph was used for two backward passes",
            "compute the loss anew for each, or detach what is carried over",
        ),
        (r"modified by an inplace operation", "a tensor that backward needs was changed in place", _CODE),
        (
            r"index out of range in self|Target \d+ is out of bounds",
            "an index is out of range, such as a token beyond the vocabulary",
            "compare the tokenizer's vocabulary with the model's",
        ),
        (
            r"Failed to find C compiler|triton.*not (found|installed)|BackendCompilerFailed|InductorError",
            "torch.compile could not build its kernels",
            "install a C compiler on the nodes, or do without torch.compile",
        ),
        (
            r"(loss|[Gg]radient).{0,30}\b(nan|NaN|inf)\b|NumericsError|Function '\w+' returned nan",
            "the loss became NaN or jumped",
            "a lower learning rate or a longer warm-up usually helps",
        ),
        # --- loading of data
        (
            r"DataLoader worker .*(killed|exited unexpectedly|is killed by signal)",
            "a loader's worker process died",
            "it is mostly memory: fewer workers, or more resources.memory_gib and /dev/shm",
        ),
        (
            r"Too many open files|Errno 24",
            "the program has too many files open",
            "raise the limit with `ulimit -n` in setup, or use fewer loader workers",
        ),
        (
            r"CorruptShardError|ArrowInvalid|Parquet magic bytes|BadGzipFile|zstd.*(error|corrupt)|zlib.error|LZMAError",
            "a file of the data is damaged",
            "make or copy it again",
        ),
        (
            r"JSONDecodeError|json\.decoder",
            "a file that should be JSON is not",
            "look at the line and column that the error names",
        ),
        (
            r"yaml\.(scanner|parser|constructor)|(Scanner|Parser)Error",
            "a file that should be YAML is not",
            "look at the line and column that the error names",
        ),
        (r"UnicodeDecodeError", "a text file is not UTF-8", "convert it, or open it with its own encoding"),
        (
            r"PicklingError|cannot pickle|Can't pickle|can't pickle",
            "an object cannot be sent to another process",
            "define it at the top of a module, without locks, files or lambdas",
        ),
        # --- files and disks
        (r"No space left on device|Errno 28|ENOSPC", "a disk is full", _SPACE),
        (r"[Dd]isk quota exceeded|Errno 122|EDQUOT", "a quota is used up", _SPACE),
        (r"Stale file handle|Errno 116", "a file on a shared file system was replaced by another machine", "resume"),
        (
            r"Read-only file system|Errno 30",
            "the place where it writes is read-only",
            "write below the run's directory, or where the cluster lets you",
        ),
        (r"Transport endpoint is not connected|Errno 107|Input/output error|Errno 5\b", "a file system is away or broken", _NODE),
        # --- the environment
        (
            r"IllegalInstruction|SIGILL|[Ii]llegal instruction",
            "the program was built for another kind of processor",
            "build or install it on a node of that kind",
        ),
        (
            r"GLIBC(XX)?_\S+' not found|version `GLIBC",
            "a binary was built for a newer system than the node's",
            "use a container, or a build for that system",
        ),
        (
            r"cannot open shared object file",
            "a shared library is missing on the node",
            "load its module in setup, or install it in the program's environment",
        ),
        (
            r"ModuleNotFoundError|No module named",
            "a package is missing where the program runs",
            "install it for the Python that runs there; `setup` may activate an environment",
        ),
        (
            r"ImportError|cannot import name|undefined symbol",
            "packages of versions that do not fit are installed",
            "install versions that were made for each other",
        ),
        (
            r"command not found|there is no program|exit code 127|No such file or directory: '(python|torchrun|deepspeed|accelerate)",
            "the program is not installed on the node, or not on its PATH",
            "name its whole path, or load it in setup",
        ),
        (
            r"may not be executed|exit code 126|: Permission denied$",
            "a file may not be executed or opened",
            "chmod it, or name its interpreter",
        ),
        (
            r"unrecognized arguments|the following arguments are required|invalid choice:|expected one argument|No such option|Missing option",
            "the program does not take the arguments that it was given",
            "compare them with its --help",
        ),
        (
            r"invalid \w+ value: '",
            "an argument of the program has a value that it cannot read",
            "compare it with the program's --help",
        ),
        (
            r"SyntaxError|IndentationError|TabError",
            "the program is not valid Python for the interpreter that runs it",
            "mend it, or use the Python version that it was written for",
        ),
        (
            r"(gated repo|GatedRepo|401 Client Error|403 Client Error|Invalid (user|username).*token|Unauthorized)",
            "a server refused the credentials",
            "log in where the program runs, or set its token in the environment that you submit from",
        ),
        (
            r"RepositoryNotFound|Repository Not Found|is not a (local folder|valid model identifier)|404 Client Error",
            "a model or data set of that name does not exist",
            "check its name, or give a directory",
        ),
        (
            r"couldn't connect to 'https|LocalEntryNotFoundError|OfflineModeIsEnabled|offline mode is enabled",
            "the node has no network, and the files are not in its cache",
            "download them on the login node, and give the directory",
        ),
        (
            r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerification",
            "a server's certificate was not accepted",
            "install the site's certificates (SSL_CERT_FILE), or correct the proxy",
        ),
        (
            r"[Nn]ame or service not known|Temporary failure in name resolution|NameResolutionError|getaddrinfo failed",
            "a host's name could not be resolved",
            "the nodes may have no network; download on the login node",
        ),
        (
            r"Connection refused|ConnectionRefusedError|Errno 111",
            "nobody listens where the program wants to connect",
            "check the address and port, and that the server runs",
        ),
        (
            r"No route to host|Network is unreachable|Errno 11[03]|Connection timed out|ConnectTimeout|ReadTimeout|TimeoutError",
            "a server did not answer",
            "the nodes may have no way to it; try again, or bring the data nearer",
        ),
        (
            r"api_key not configured|wandb.*(login|API key)|UsageError: No API key",
            "W&B has no login where the program runs",
            "set WANDB_MODE=offline, and `ropewalk sync` later",
        ),
        (
            r"can't start new thread|Resource temporarily unavailable|fork: retry|libgomp: Thread creation failed",
            "the node lets this user start no more processes or threads",
            "use fewer workers, or set OMP_NUM_THREADS",
        ),
        (r"Argument list too long|Errno 7\b", "the command line or environment is too long", "put the arguments into a file"),
        (
            r"PermissionError|Permission denied|Errno 13\b",
            "a file or directory may not be read or written",
            "look at its owner and mode on the node",
        ),
        (
            r"FileNotFoundError|No such file or directory|Errno 2\b",
            "a file or directory is not there on the node",
            "check the path, and that the node sees that file system",
        ),
        # --- the program's own
        (
            r"KeyError: '[A-Z][A-Z0-9_]+'",
            "an environment variable is not set",
            "set it in `environment`, or export it where you submit",
        ),
        (r"RecursionError", "the program calls itself without end", _CODE),
        (
            r"Segmentation fault|SIGSEGV",
            "it crashed in native code (segmentation fault)",
            "PYTHONFAULTHANDLER=1 in environment shows where; mismatched packages are the usual cause",
        ),
        (
            r"SIGABRT|Aborted|terminate called after throwing",
            "it was aborted by native code",
            "its last lines in `ropewalk logs` say why",
        ),
        (
            r"SIGKILL|Killed$",
            "it was killed from outside: by the out-of-memory killer, a person or the scheduler",
            "more resources.memory_gib, if the node's memory was full; `ropewalk show` has the last samples",
        ),
        (r"KeyboardInterrupt|SIGINT", "it was interrupted", "resume"),
        (
            r"(Assertion|Attribute|Key|Index|Name|Type|Value|ZeroDivision|UnboundLocal|NotImplemented|Overflow|StopIteration|EOF)Error",
            "the program has a bug, or was given a value that it cannot take",
            _CODE,
        ),
    )
)
