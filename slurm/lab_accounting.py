"""The test cluster's accounting: MariaDB, slurmdbd, one account, and two QoS with limits to run into."""

import secrets

from slurm.lab_config import ACCOUNT, CLUSTER, DATABASE, LabSettings, Place, slurmdbd_conf
from slurm.lab_daemons import Daemons

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
    data = folder / "database"
    own = ["--no-defaults", f"--user={place.user}", f"--datadir={data}"]
    if not data.exists():
        data.mkdir(mode=0o700)
        flags = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        daemons.launch("mariadbd", "mariadb-install-db", *own, *flags)
    words = [f"--socket={folder}/run/mysql.sock", f"--port={place.port + 2}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
    # slurmdbd asks for the long lock wait; nobody minds a lost second of this cluster's history
    words += ["--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M"]
    daemons.kill("mariadbd")
    daemons.launch("mariadbd", "mariadbd", *own, *words, f"--log-error={folder}/log/mariadbd.log", foreground=True)
    daemons.wait_until(lambda: daemons.answers(*_sql(daemons, "select 1")), "MariaDB answers")


def _start_slurmdbd(daemons: Daemons, place: Place) -> None:
    conf = daemons.folder / "etc/slurmdbd.conf"
    if not conf.exists():
        password = secrets.token_hex(12)
        conf.touch(mode=0o600)
        conf.write_text(slurmdbd_conf(place, password))
        user = "slurm@'127.0.0.1'"
        statements = (
            f"create database {DATABASE}; create user {user} identified by '{password}'; grant all on {DATABASE}.* to {user}"
        )
        daemons.command(*_sql(daemons, statements))
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


def _sql(daemons: Daemons, statements: str) -> list[str]:
    return ["mariadb", "--no-defaults", "--user=root", f"--socket={daemons.folder}/run/mysql.sock", "--execute", statements]
