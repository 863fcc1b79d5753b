"""The test cluster's accounting: MariaDB, slurmdbd, one account, and two QoS with limits to run into."""

from slurm.lab.config import ACCOUNT, CLUSTER, DATABASE, LabSettings, Place, slurmdbd_conf
from slurm.lab.daemons import Daemons

# small: refused at once beyond one node or ten minutes; single: a second job waits
QOS = {
    "small": ("MaxTRESPerJob=node=1", "MaxWall=00:10:00", "Flags=DenyOnLimit"),
    "single": ("MaxJobsPerUser=1",),
}


def start_accounting(daemons: Daemons, place: Place, settings: LabSettings) -> None:
    """Start MariaDB and slurmdbd, and make what is not there; return when sacctmgr answers."""
    _start_database(daemons, place)
    _start_slurmdbd(daemons, place)
    if CLUSTER not in daemons.command("sacctmgr", "-nP", "show", "cluster", "format=cluster").split():
        _fill(daemons, place, settings)


def _start_database(daemons: Daemons, place: Place) -> None:
    folder = daemons.folder
    data = daemons.database
    own = ["--no-defaults", f"--user={place.user}", f"--datadir={data}"]
    if not data.exists():
        data.mkdir(mode=0o700)  # nobody else reaches its socket
        # nobody is root without being this user of the machine, and so there is no password
        flags = ["--auth-root-authentication-method=socket", f"--auth-root-socket-user={place.user}", "--skip-test-db"]
        daemons.launch("mariadbd", "mariadb-install-db", *own, *flags)
    words = [f"--socket={daemons.database_socket}", "--skip-networking", f"--secure-file-priv={data}", "--skip-local-infile"]
    # slurmdbd asks for the long lock wait; nobody minds a lost second of this cluster's history
    words += ["--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M"]
    daemons.kill("mariadbd")
    daemons.launch("mariadbd", "mariadbd", *own, *words, f"--log-error={folder}/log/mariadbd.log", foreground=True)
    daemons.wait_until(lambda: daemons.answers(*_sql(daemons, place, "select 1")), "MariaDB answers")


def _start_slurmdbd(daemons: Daemons, place: Place) -> None:
    conf = daemons.folder / "etc/slurmdbd.conf"
    if not conf.exists():
        conf.touch(mode=0o600)  # slurmdbd wants it so
        conf.write_text(slurmdbd_conf(place))
        daemons.command(*_sql(daemons, place, f"create database {DATABASE}"))
    daemons.kill("slurmdbd")
    daemons.launch("slurmdbd", "slurmdbd")
    daemons.wait_until(lambda: daemons.answers("sacctmgr", "-n", "show", "cluster"), "slurmdbd answers")


def _fill(daemons: Daemons, place: Place, settings: LabSettings) -> None:
    for name, limits in QOS.items():
        daemons.command("sacctmgr", "-i", "add", "qos", name, *limits)
    daemons.command("sacctmgr", "-i", "add", "cluster", CLUSTER)
    own = [f"cluster={CLUSTER}"]
    # on the root account, so that all below it inherit
    daemons.command(
        "sacctmgr", "-i", "modify", "account", "root", "set", f"qos={','.join(['normal', *QOS])}", "defaultqos=normal"
    )
    daemons.command("sacctmgr", "-i", "add", "account", ACCOUNT, *own)
    for user in dict.fromkeys((place.user, *settings.users)):
        daemons.command("sacctmgr", "-i", "add", "user", user, f"account={ACCOUNT}", *own)
        daemons.command("sacctmgr", "-i", "modify", "user", user, "set", f"defaultaccount={ACCOUNT}")


def _sql(daemons: Daemons, place: Place, statement: str) -> list[str]:
    own = [f"--user={place.user}", f"--socket={daemons.database_socket}"]
    return ["mariadb", "--no-defaults", *own, "--execute", statement]
