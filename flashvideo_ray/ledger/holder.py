"""Who holds a claim on a run, for people and for the jobs that wait."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict


class Identity(BaseModel):
    """Who holds a claim, in terms by which a person can find the job."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    user: str
    command: str
    ray_job: str | None = None
    pids: str | None = None
    """Which pids this one is among: those of a machine since it started, or of a container on it."""

    @classmethod
    def of_this_process(cls, ray_job: str | None = None) -> Self:
        """This process, and the id of the Ray job it drives if there is one."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container whose user has no name
            user = str(os.getuid())
        command = shlex.join(sys.argv)
        return cls(
            host=socket.gethostname(), pid=os.getpid(), user=user, command=command, ray_job=ray_job, pids=_pids()
        )

    def is_known_dead(self) -> bool:
        """Whether it was a process of this machine that is gone: nobody need wait for its lease to lapse then."""
        if self.pids is None or (self.host, self.pids) != (socket.gethostname(), _pids()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is there, and another user's
            pass
        return False

    def __str__(self) -> str:
        job = f", Ray job {self.ray_job}" if self.ray_job else ""
        return f"pid {self.pid} on {self.host}, user {self.user}{job} (`{self.command}`)"


def _pids() -> str | None:
    """The machine since its start, and the pid namespace, on Linux; elsewhere nothing is concluded from a pid.

    The namespace alone has the same number on all machines, and their names need not differ.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
