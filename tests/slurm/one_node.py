"""A real Slurm of one node, for one test session: no systemd, no cgroups, no rights beyond one's own.

Everything it writes lies in one temporary folder, everything it opens listens on loopback only, and when it
stops no process of it is left. It needs Debian's packages slurmctld, slurmd, slurm-client and munge, and none
of their services or settings in /etc.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("setpriv", "slurmctld", "slurmd", "munged", "sbatch", "scancel", "sinfo", "squeue")
# What the node says it has: Slurm here counts, it does not limit.
CPUS, MEMORY_MB, GPUS = 4, 8192, ("/dev/null", "/dev/zero")

USER = pwd.getpwuid(os.getuid()).pw_name

# A daemon ends also when pytest is killed.
WITH_PARENT = ("setpriv", "--pdeathsig", "TERM")

SETTINGS = """
ClusterName=onenode
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true

ProctrackType=proctrack/pgid
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=10
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0

GresTypes=gpu
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}
PartitionName=main Nodes=localhost Default=YES MaxTime=08:00:00 State=UP
"""


def missing_programs() -> list[str]:
    return [program for program in PROGRAMS if not find(program)]


def find(program: str) -> str | None:
    """Where a program is; the daemons lie in /usr/sbin, which not every user's PATH names."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def wait_for(what: str, ready: Callable[[], object], seconds: float = 60, every: float = 0.2):
    """The first true answer; a TimeoutError that names what never came."""
    end = time.monotonic() + seconds
    while not (answer := ready()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(every)
    return answer


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class OneNodeSlurm:
    """`with OneNodeSlurm() as slurm:`; its commands work wherever `slurm.environment` is the environment."""

    def __enter__(self) -> OneNodeSlurm:
        # Not pytest's tmp_path: the path of a Unix socket has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o711)  # munged asks that everybody may reach its socket
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []
        try:
            self._write_settings()
            self._start_munge()
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            wait_for("an idle node", self._node_is_idle)
        except BaseException:
            print(self.logs())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if len(self._daemons) == 3:
                self("scancel", "--user", USER, check=False)
                wait_for("an empty queue", lambda: not self.jobs(check=False))
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in reversed(self._daemons):
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            left = self._end_what_is_left()
            shutil.rmtree(self.folder)
        if left:
            raise RuntimeError(f"still running when this Slurm had stopped (killed now): {left}")

    def __call__(self, program: str, *arguments: str, check: bool = True) -> str:
        """What a Slurm command prints."""
        command = [find(program), *arguments]
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stderr.strip()}\n{self.logs()}")
        return done.stdout.strip()

    def _end_what_is_left(self) -> dict[int, str]:
        """The processes that ten seconds do not see ending, each killed by its number."""
        try:
            wait_for("the end of every process", lambda: not self.processes(), 10)
        except TimeoutError:
            left = self.processes()
            for number in left:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            return left
        return {}

    def _node_is_idle(self) -> bool:
        for daemon in self._daemons:
            if daemon.poll() is not None:
                raise RuntimeError(f"{daemon.args[len(WITH_PARENT)]} ended with {daemon.returncode}")
        return self("sinfo", "-h", "-o", "%T", check=False) == "idle"

    def jobs(self, state: str = "all", check: bool = True) -> list[str]:
        """The numbers of the jobs in the queue (a finished job is no longer in it), in order."""
        states = "PENDING,RUNNING,SUSPENDED,CONFIGURING,COMPLETING,STOPPED" if state == "all" else state
        return sorted(self("squeue", "-h", "-t", states, "-o", "%i", check=check).split(), key=int)

    def processes(self) -> dict[int, str]:
        """Every process of this Slurm and of its jobs, by number: those whose SLURM_CONF is this one's."""
        mine = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mine in (entry / "environ").read_bytes().split(b"\0"):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(entry.name)] = command
            except OSError:  # it ended meanwhile, or is another user's
                continue
        return found

    def logs(self) -> str:
        tails = [f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log"))]
        return "\n".join(tails)

    def _write_settings(self) -> None:
        controller_port, node_port = free_ports(2)
        settings = SETTINGS.format(
            host=socket.gethostname().split(".")[0],
            controller_port=controller_port,
            node_port=node_port,
            user=USER,
            folder=self.folder,
            cpus=CPUS,
            memory=MEMORY_MB,
            gpus=len(GPUS),
        )
        (self.folder / "slurm.conf").write_text(settings)
        # A GPU is a device file to Slurm, which only hands out its number (CUDA_VISIBLE_DEVICES).
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in GPUS))
        # slurmd looks for cgroups though nothing here uses them. Older versions cannot be told to leave it,
        # but their v1 is content with a folder that is not there.
        version = tuple(int(number) for number in re.findall(r"\d+", self("slurmctld", "-V"))[:2])
        without = "disabled" if version >= (23, 2) else "cgroup/v1"
        (self.folder / "cgroup.conf").write_text(
            f"CgroupPlugin={without}\nCgroupMountpoint={self.folder}/no-cgroups\n"
        )
        for name in ("state", "spool"):
            (self.folder / name).mkdir()

    def _start_munge(self) -> None:
        """Slurm's messages are signed; this key lives as long as this Slurm."""
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        places = {name: self.folder / f"munge.{name}" for name in ("socket", "key", "pid", "log", "seed")}
        self._start(
            "munged",
            "--foreground",
            f"--socket={places['socket']}",
            f"--key-file={key}",
            f"--pid-file={places['pid']}",
            f"--log-file={places['log']}",
            f"--seed-file={places['seed']}",
        )
        wait_for("munged's socket", places["socket"].exists, 20)

    def _start(self, program: str, *arguments: str) -> None:
        output = (self.folder / f"{program}.output.log").open("wb")
        with output:
            daemon = subprocess.Popen(
                [*WITH_PARENT, find(program), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in pytest must reach them through __exit__, in order
            )
        self._daemons.append(daemon)
