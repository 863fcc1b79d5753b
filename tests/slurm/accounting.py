"""A test cluster with accounting: MariaDB, slurmdbd, one account, and two QoS with limits to run into."""

import shutil
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.config import CLUSTER, LabLocation, LabSettings
from ropewalk.slurm.lab.daemons import PATH

ACCOUNT = "lab"
DATABASE = "slurm_acct"
NEEDED = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb")
INSTALL = "apt-get install --no-install-recommends slurmdbd mariadb-server"
# small: refused at once beyond one node or ten minutes; single: a second job waits
QOS = {
    "small": ("MaxTRESPerJob=node=1", "MaxWall=00:10:00", "Flags=DenyOnLimit"),
    "single": ("MaxJobsPerUser=1",),
}


def missing_to_account() -> str:
    """Packages to install for accounting; empty if all are present."""
    absent = [name for name in NEEDED if not shutil.which(name, path=PATH)]
    return f"{', '.join(absent)} not found; on Debian or Ubuntu: {INSTALL}" if absent else ""


class AccountingLab(Lab):
    """A lab whose controller keeps accounts; `users` of its settings may submit too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.database = self.folder / "database"  # MariaDB's files and its socket, which nobody but this user reaches
        self.socket = self.database / "mysql.sock"

    def up(self, settings: LabSettings | None = None) -> None:
        if remedy := missing_to_account():
            raise ConfigError(f"accounting needs MariaDB: {remedy}")
        super().up(settings)

    def _write_files(self, location: LabLocation, settings: LabSettings) -> None:
        super()._write_files(location, settings)
        with self.conf.open("a") as stream:
            stream.write(_lines(_slurm_keys(location)))

    def _start_munged(self) -> None:
        super()._start_munged()
        self.start_accounting()  # before the controller

    def start_accounting(self) -> None:
        """Start MariaDB and slurmdbd, and make what is not there; return when sacctmgr answers."""
        self._start_database()
        self._start_slurmdbd()
        if CLUSTER not in self.command("sacctmgr", "-nP", "show", "cluster", "format=cluster").split():
            self._fill()

    def kill_accounting(self) -> None:
        """Kill the accounting daemon, so that sacct does not answer."""
        self.daemons.kill("slurmdbd")

    def _start_database(self) -> None:
        options = ["--no-defaults", f"--user={self.location.user}", f"--datadir={self.database}"]
        if not self.database.exists():
            self.database.mkdir(mode=0o700)  # nobody else reaches its socket
            # nobody is root without being this user of the machine, and so there is no password
            flags = [
                "--auth-root-authentication-method=socket",
                f"--auth-root-socket-user={self.location.user}",
                "--skip-test-db",
            ]
            self.daemons.launch("mariadbd", "mariadb-install-db", *options, *flags)
        arguments = [f"--socket={self.socket}", "--skip-networking", f"--secure-file-priv={self.database}", "--skip-local-infile"]
        # slurmdbd asks for the long lock wait; nobody minds a lost second of this cluster's history
        arguments += ["--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M"]
        self.daemons.kill("mariadbd")
        log = f"--log-error={self.folder}/log/mariadbd.log"
        self.daemons.launch("mariadbd", "mariadbd", *options, *arguments, log, foreground=True)
        self.daemons.wait_until(lambda: self.daemons.answers(*self._sql("select 1")), "MariaDB answers")

    def _start_slurmdbd(self) -> None:
        conf = self.folder / "etc/slurmdbd.conf"
        if not conf.exists():
            conf.touch(mode=0o600)  # slurmdbd wants it so
            conf.write_text(_lines(_slurmdbd_keys(self.location)))
            self.command(*self._sql(f"create database {DATABASE}"))
        self.daemons.kill("slurmdbd")
        self.daemons.launch("slurmdbd", "env", f"MYSQL_UNIX_PORT={self.socket}", "slurmdbd")  # it has no key for it
        self.daemons.wait_until(lambda: self.daemons.answers("sacctmgr", "-n", "show", "cluster"), "slurmdbd answers")

    def _fill(self) -> None:
        for name, limits in QOS.items():
            self.command("sacctmgr", "-i", "add", "qos", name, *limits)
        self.command("sacctmgr", "-i", "add", "cluster", CLUSTER)
        options = [f"cluster={CLUSTER}"]
        # on the root account, so that all below it inherit
        allowed = f"qos={','.join(['normal', *QOS])}"
        self.command("sacctmgr", "-i", "modify", "account", "root", "set", allowed, "defaultqos=normal")
        self.command("sacctmgr", "-i", "add", "account", ACCOUNT, *options)
        for user in dict.fromkeys((self.location.user, *self.settings.users)):
            self.command("sacctmgr", "-i", "add", "user", user, f"account={ACCOUNT}", *options)
            self.command("sacctmgr", "-i", "modify", "user", user, "set", f"defaultaccount={ACCOUNT}")

    def _sql(self, statement: str) -> list[str]:
        options = [f"--user={self.location.user}", f"--socket={self.socket}"]
        return ["mariadb", "--no-defaults", *options, "--execute", statement]


def _lines(keys: dict[str, Any]) -> str:
    return "".join(f"{key}={value}\n" for key, value in keys.items())


def _slurm_keys(location: LabLocation) -> dict[str, Any]:
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "127.0.0.1",
        "AccountingStoragePort": location.port + 1,
        "AccountingStoragePass": location.munge_socket,
        "AccountingStorageEnforce": "limits,qos",
        "AccountingStoreFlags": "job_comment",
    }


def _slurmdbd_keys(location: LabLocation) -> dict[str, Any]:
    return {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={location.munge_socket}",
        "DbdHost": location.host,
        "DbdAddr": "127.0.0.1",
        "DbdPort": location.port + 1,
        "SlurmUser": location.user,
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",  # by a socket, which tells the database who calls
        "StorageUser": location.user,
        "StorageLoc": DATABASE,
        "LogFile": location.folder / "log/slurmdbd.log",
        "PidFile": location.folder / "run/slurmdbd.pid",
    }
