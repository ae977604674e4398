# SPDX-License-Identifier: BSD-3-Clause
"""May the ledger live in this directory? Local disk, SlurmUser's, 0700, and nobody else can swap it for another."""

from __future__ import annotations

import os
import stat
from typing import List, Optional, Sequence

#: File systems that several hosts may write: SQLite's locks and its shared memory do not hold across hosts.
NETWORK_FILE_SYSTEMS = frozenset(
    "9p acfs afs beegfs ceph cifs coda davfs fhgfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs pvfs2 "
    "smb3 smbfs virtiofs wekafs".split()
)

#: FUSE file systems that are local disks; any other one is taken as remote.
LOCAL_FUSE = frozenset(["fuseblk", "fuse.fuse-overlayfs", "fuse.lxcfs"])

MOUNTINFO = "/proc/self/mountinfo"


def check(path: str, owner_uid: int, *, mountinfo: str = MOUNTINFO) -> Sequence[str]:
    """What forbids to keep the ledger in ``path``, one line each with what to do; empty: nothing.

    ``owner_uid`` is SlurmUser's. Nothing is created or changed.
    """
    try:
        status = os.lstat(path)
    except OSError as error:
        what = (
            "does not exist"
            if isinstance(error, FileNotFoundError)
            else f"cannot be read: {error.strerror}"
        )
        return [
            f"{path}: {what}: expected a directory of {_user(owner_uid)}: {_create(path, owner_uid)}"
        ]
    if stat.S_ISLNK(status.st_mode):
        return [
            f"{path}: is a symbolic link: expected the directory itself; name its target in state_dir"
        ]
    if not stat.S_ISDIR(status.st_mode):
        return [f"{path}: is not a directory: expected one of {_user(owner_uid)}, mode 0700"]
    problems: List[str] = []
    if status.st_uid != owner_uid:
        owner = _user(owner_uid)
        problems.append(
            f"{path}: belongs to {_user(status.st_uid)}: expected {owner}: chown -R {owner} {path}"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 or mode & 0o700 != 0o700:
        problems.append(f"{path}: mode {mode:04o}: expected 0700: chmod 700 {path}")
    problems += _parents(path, owner_uid)
    kind = file_system(path, mountinfo=mountinfo)
    if kind is not None and is_network(kind):
        problems.append(
            f"{path}: on a network file system ({kind}): expected a local disk of the controller"
        )
    return problems


def _parents(path: str, owner_uid: int) -> List[str]:
    """A directory above that somebody else may write: they could put another ledger in this one's place."""
    parent = os.path.dirname(os.path.abspath(path))
    while True:
        try:
            status = os.stat(parent)
        except OSError:
            return []
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid not in (0, owner_uid):
            owner = _user(status.st_uid)
            return [f"{path}: {parent} belongs to {owner}: expected root or {_user(owner_uid)}"]
        if mode & 0o022 and not mode & stat.S_ISVTX:
            return [
                f"{path}: {parent} has mode {mode:04o}: expected one that only its owner can write: chmod go-w {parent}"
            ]
        if parent == os.path.dirname(parent):
            return []
        parent = os.path.dirname(parent)


def is_network(kind: str) -> bool:
    """Of a file system type as the kernel names it."""
    if kind in LOCAL_FUSE:
        return False
    return kind in NETWORK_FILE_SYSTEMS or kind == "fuse" or kind.startswith("fuse.")


def file_system(path: str, *, mountinfo: str = MOUNTINFO) -> Optional[str]:
    """The type of the file system that holds ``path``; None: the kernel does not tell."""
    target = os.path.realpath(path)
    try:
        with open(mountinfo, "rb") as file:
            lines = file.read().decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    kind: Optional[str] = None
    longest = -1
    for line in lines:
        # ID PARENT MAJOR:MINOR ROOT MOUNT_POINT OPTIONS [OPTIONAL...] - TYPE SOURCE SUPER_OPTIONS
        before, separator, after = line.partition(" - ")
        columns = before.split(" ")
        if not separator or len(columns) < 6:
            continue
        mount_point = _unescaped(columns[4])
        inside = target == mount_point or target.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= longest:  # of two on one point, the later one covers
            longest, kind = len(mount_point), after.split(" ")[0]
    return kind


def _unescaped(text: str) -> str:
    for escape, char in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(escape, char)
    return text


def _create(path: str, owner_uid: int) -> str:
    return f"install -d -m 700 -o {_user(owner_uid)} {path}"


def _user(uid: int) -> str:
    # No name service: this runs inside slurmctld, where a directory server that hangs must not be waited for.
    try:
        with open("/etc/passwd", encoding="utf-8", errors="replace") as file:
            for line in file:
                columns = line.split(":")
                if len(columns) > 2 and columns[2] == str(uid):
                    return columns[0]
    except OSError:
        pass
    return f"uid {uid}"
