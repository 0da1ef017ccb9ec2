"""A process that gives up what a ratio scheme has no use for: writing files, the network, other processes, memory
without end. Linux: Landlock, seccomp and limits, through ctypes; elsewhere the limits alone.

What is given up stays given up, for every thread that is started later: `confine` is called while there is one.
"""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import re
import resource
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import ENETDOWN, ENOSYS, EPERM
from pathlib import Path

WRITES = "files outside of a scratch folder cannot be written"
NETWORK = "the network cannot be used"
PROCESSES = "no process can be started or signalled"
MEMORY = "memory is limited"
EVERY = (WRITES, NETWORK, PROCESSES, MEMORY)


@dataclass(frozen=True)
class Protection:
    """What holds in a confined process, and what does not hold here: [(what, why)]."""

    holds: tuple[str, ...]
    lacks: tuple[tuple[str, str], ...] = ()

    @property
    def words(self) -> str:
        """What does not hold, in one line; '' where everything does."""
        return "does not hold here: " + "; ".join(f"{what} ({why})" for what, why in self.lacks) if self.lacks else ""


def expected() -> Protection:
    """What `confine` will bring about on this machine; this process stays as it is."""
    lacks: list[tuple[str, str]] = []
    landlock, why = _landlock_abi()
    if not landlock:
        lacks.append((WRITES, why))
    if why := _no_seccomp():
        lacks += [(NETWORK, why), (PROCESSES, why)]
    if not sys.platform.startswith("linux"):
        lacks.append((MEMORY, f"{platform.system()} does not count it"))
    return _protection(lacks)


def confine(scratch: Path, devices: Iterable[str] = ()) -> Protection:
    """Give it all up but the memory (`limit_memory`), and say what holds. `devices` are files such as /dev/nvidia* that
    may be opened for writing."""
    lacks: list[tuple[str, str]] = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_FSIZE, 2**30)
    if not sys.platform.startswith("linux"):
        return expected()
    if len(os.listdir("/proc/self/task")) > 1:
        lacks.append((WRITES, "other threads were running"))
    _no_new_privileges()
    _drop_capabilities()
    for what, steps in (((WRITES,), _landlock), ((NETWORK, PROCESSES), _seccomp)):
        try:
            steps(scratch, devices)
        except OSError as error:
            lacks += [(one, str(error.strerror or error)) for one in what]
    return _protection(lacks)


def limit_memory(size: int, cuda: bool = False) -> None:
    """Let this process have `size` bytes more than it has now; no limit can be changed afterwards, by root neither."""
    if not sys.platform.startswith("linux"):
        return
    status = Path("/proc/self/status").read_text()
    held = {key: int(value.split()[0]) * 1024 for key, value in re.findall(r"(Vm\w+):\s*(\d+ kB)", status)}
    _lower(resource.RLIMIT_DATA, held["VmData"] + size)
    if not cuda:  # which reserves addresses for all of the device; mapped files and threads' stacks are addresses too
        _lower(resource.RLIMIT_AS, held["VmSize"] + size + 2**32)
    if not _no_seccomp():
        column, architecture = ARCHITECTURES[platform.machine()]
        _filter(column, _fixed_limits(column, architecture))


def _protection(lacks: list[tuple[str, str]]) -> Protection:
    missing = [what for what, _ in lacks]
    return Protection(tuple(what for what in EVERY if what not in missing), tuple(lacks))


def _lower(which: int, size: int) -> None:
    hard = resource.getrlimit(which)[1]
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(which, (size, size))


# --- privileges ------------------------------------------------------------------------------------------------------

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CAPABILITIES = 0x20080522  # the header's version 3
CAP_DAC_READ_SEARCH = 2  # root's, to read what others own: reading stays allowed


def die_with_parent() -> None:
    """Be killed when the process that started this one ends; to be asked for before `confine`, after which nobody can
    take it back."""
    if sys.platform.startswith("linux"):
        _libc().prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)


def _no_new_privileges() -> None:
    if _libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "privileges cannot be given up")


def _drop_capabilities() -> None:
    """Root without its powers; whoever has none loses none."""
    header = struct.pack("Ii", CAPABILITIES, 0)
    now = ctypes.create_string_buffer(24)
    if _libc().capget(header, now):
        return
    _, permitted, *_ = struct.unpack("6I", now.raw)
    read = permitted & 1 << CAP_DAC_READ_SEARCH
    _libc().capset(header, struct.pack("6I", read, read, 0, 0, 0, 0))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *values: int | bytes | None) -> int:
    """A system call by number; OSError where it fails."""
    given = [ctypes.c_long(v) if isinstance(v, int) else v for v in values]
    function = _libc().syscall
    function.restype = ctypes.c_long
    found: int = function(ctypes.c_long(number), *given)
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


# --- Landlock: what may be written --------------------------------------------------------------------------------

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
# include/uapi/linux/landlock.h; reading, listing and executing are not handled, so they stay allowed
WRITE_FILE, TRUNCATE, IOCTL_DEV = 1 << 1, 1 << 14, 1 << 15
CHANGES = sum(1 << bit for bit in range(4, 13))  # remove and make: folders, files, sockets, pipes, devices, links
REFER = 1 << 13
CONNECT_AND_BIND = 1 << 0 | 1 << 1
ABSTRACT_SOCKETS_AND_SIGNALS = 1 << 0 | 1 << 1


def _landlock_abi() -> tuple[int, str]:
    """(version of Landlock, 0 where there is none; why there is none)."""
    if not sys.platform.startswith("linux"):
        return 0, f"{platform.system()} has no Landlock"
    try:
        return _call(CREATE_RULESET, None, 0, 1), ""
    except OSError:
        return 0, f"Linux {platform.release()} has no Landlock, or it is switched off"


def _landlock(scratch: Path, devices: Iterable[str]) -> None:
    abi, why = _landlock_abi()
    if not abi:
        raise OSError(0, why)
    files = WRITE_FILE | (TRUNCATE if abi >= 3 else 0) | (IOCTL_DEV if abi >= 5 else 0)
    handled = files | CHANGES | (REFER if abi >= 2 else 0)
    attributes = struct.pack("Q", handled)
    if abi >= 4:
        attributes += struct.pack("Q", CONNECT_AND_BIND)
    if abi >= 6:
        attributes += struct.pack("Q", ABSTRACT_SOCKETS_AND_SIGNALS)
    rules = _call(CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _allow(rules, str(scratch), handled)
        for device in ("/dev/null", *devices):
            if os.path.exists(device):
                _allow(rules, device, files)
        _call(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _call(ADD_RULE, rules, 1, struct.pack("=Qi", access, place), 0)
    finally:
        os.close(place)


def gpu_devices() -> tuple[str, ...]:
    """The files through which CUDA reaches its devices."""
    found = [*glob.glob("/dev/nvidia*"), *glob.glob("/dev/nvidia-caps/*")]
    return tuple(path for path in found if not os.path.isdir(path))


# --- seccomp: what may be asked of the kernel ------------------------------------------------------------------------

# (x86_64, aarch64); None where a machine has no such call
NO_NETWORK: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
}  # fmt: skip
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # processes: others are neither made, nor looked into, nor signalled
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # memory that no limit counts, or that outlives the process
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # ways around this filter, and the kernel's less trodden paths
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "vhangup": (153, 58),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # the machine as a whole
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "syslog": (103, 116), "iopl": (172, None), "ioperm": (173, None),
    # what Landlock does not see: modes, owners, times and attributes of files (old ones: their truncation)
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45),
}  # fmt: skip
ABSENT: dict[str, tuple[int | None, int | None]] = {"clone3": (435, 435)}  # libc then takes clone, whose flags are seen
FIRST_UNKNOWN = 470  # calls that kernels have got since are absent too

CLONE, KILL, TGKILL = (56, 220), (62, 129), (234, 131)
SETRLIMIT, PRLIMIT, SETAFFINITY, IOCTL = (160, 164), (302, 261), (203, 122), (16, 29)
FCNTL, PRCTL = (72, 25), (157, 167)
CLONE_THREAD = 0x10000
# commands that put text into a terminal, and that choose a process to be signalled when a file is ready
TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP = 0x5412, 0x541C, 0x8901, 0x8902
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15

SECCOMP = (317, 277)
SET_MODE_FILTER, TSYNC = 1, 1
ALLOW, FAIL, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_IF_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
X32 = 0x40000000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; arguments are of 8 bytes, low half first


def _no_seccomp() -> str:
    if not sys.platform.startswith("linux"):
        return f"{platform.system()} has no seccomp"
    if platform.machine() not in ARCHITECTURES or sys.maxsize < 2**32:
        return f"no filter is written for {platform.machine()}"
    try:
        _call(SECCOMP[ARCHITECTURES[platform.machine()][0]], 2, 0, struct.pack("I", FAIL))
    except OSError:
        return f"Linux {platform.release()} has no seccomp, or it is switched off"
    return ""


def _seccomp(scratch: Path, devices: Iterable[str]) -> None:
    if why := _no_seccomp():
        raise OSError(0, why)
    column, architecture = ARCHITECTURES[platform.machine()]
    _filter(column, _program(column, architecture, os.getpid()))


def _filter(column: int, steps: Iterable[bytes]) -> None:
    """Set a filter for this thread and all others; those set before stay."""
    program = b"".join(steps)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    _call(SECCOMP[column], SET_MODE_FILTER, TSYNC, head)


def _program(column: int, architecture: int, own: int) -> Iterator[bytes]:
    """The filter, in classic BPF: each test jumps over its answer unless it holds."""
    yield _step(LOAD, ARCHITECTURE)
    yield from _unless(JUMP_EQUAL, architecture, KILL_PROCESS)
    yield _step(LOAD, NUMBER)
    if column == 0:
        yield from _when(JUMP_AT_LEAST, X32, KILL_PROCESS)
    yield from _when(JUMP_AT_LEAST, FIRST_UNKNOWN, FAIL | ENOSYS)
    for calls, code in ((NO_NETWORK, ENETDOWN), (REFUSED, EPERM), (ABSENT, ENOSYS)):
        for numbers in calls.values():
            if (number := numbers[column]) is not None:
                yield from _when(JUMP_EQUAL, number, FAIL | code)
    # threads and no processes; signals to this process alone; limits of this process alone
    yield from _argument(CLONE[column], 0, _unless(JUMP_IF_SET, CLONE_THREAD, FAIL | EPERM))
    for number in (KILL[column], TGKILL[column]):
        yield from _argument(number, 0, _unless(JUMP_EQUAL, own, FAIL | EPERM))
    yield from _argument(PRLIMIT[column], 0, _unless(JUMP_EQUAL, 0, FAIL | EPERM, or_equal=own))
    yield from _argument(SETAFFINITY[column], 0, _unless(JUMP_EQUAL, 0, FAIL | EPERM))
    for request in (TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP):
        yield from _argument(IOCTL[column], 1, _when(JUMP_EQUAL, request, FAIL | EPERM))
    for command in (F_SETOWN, F_SETSIG, F_SETOWN_EX):
        yield from _argument(FCNTL[column], 1, _when(JUMP_EQUAL, command, FAIL | EPERM))
    # what `die_with_parent` has asked for stays
    yield from _argument(PRCTL[column], 0, _when(JUMP_EQUAL, PR_SET_PDEATHSIG, FAIL | EPERM))
    yield _step(RETURN, ALLOW)


def _fixed_limits(column: int, architecture: int) -> Iterator[bytes]:
    """A filter that lets limits be read and not set."""
    yield _step(LOAD, ARCHITECTURE)
    yield from _unless(JUMP_EQUAL, architecture, KILL_PROCESS)
    yield _step(LOAD, NUMBER)
    yield from _when(JUMP_EQUAL, SETRLIMIT[column], FAIL | EPERM)
    for high in (False, True):
        yield from _argument(PRLIMIT[column], 2, _unless(JUMP_EQUAL, 0, FAIL | EPERM), high)
    yield _step(RETURN, ALLOW)


def _step(code: int, value: int, hit: int = 0, miss: int = 0) -> bytes:
    return struct.pack("HBBI", code, hit, miss, value)


def _when(test: int, value: int, answer: int) -> list[bytes]:
    return [_step(test, value, 0, 1), _step(RETURN, answer)]


def _unless(test: int, value: int, answer: int, or_equal: int | None = None) -> list[bytes]:
    if or_equal is not None:
        return [_step(test, value, 2, 0), _step(JUMP_EQUAL, or_equal, 1, 0), _step(RETURN, answer)]
    return [_step(test, value, 1, 0), _step(RETURN, answer)]


def _argument(number: int, place: int, steps: list[bytes], high: bool = False) -> list[bytes]:
    """Steps on half of an argument of one call; what is loaded afterwards is the number of the call again."""
    inner = [_step(LOAD, ARGUMENTS + 8 * place + 4 * high), *steps, _step(LOAD, NUMBER)]
    return [_step(JUMP_EQUAL, number, 0, len(inner)), *inner]
