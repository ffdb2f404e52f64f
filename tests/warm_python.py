"""A Python that has its imports behind it: each process of a test is forked from it, in milliseconds and not seconds.

    python warm_python.py serve SOCKET MODULE...     import modules, of PACKAGE.* all, then fork for whoever asks
    python -IS warm_python.py SOCKET -c CODE ...     as `python -c CODE ...`; so are -m MODULE and FILE

The second is what tests start in place of `sys.executable` (fixture `warm_python`): a process with its own standard
streams, environment, folder and exit code. It passes signals on to the fork, to the fork's whole session where it leads
a session itself, and ends as the fork ends; if it is killed, so is the fork. Whatever calmctl imports lazily and was
not named is imported by each fork for itself, so a test that nothing slow is loaded can ask a fork.
"""

import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def receive(connection: socket.socket) -> bytes:
    """One line."""
    line = b""
    while not line.endswith(b"\n") and (more := connection.recv(1 << 16)):
        line += more
    return line


# --- the process that a test starts -----------------------------------------------------------------------


def ask(address: str, words: list[str]) -> None:
    """Have `words` run in a fork, and end as it does."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    leads = os.getsid(0) == os.getpid()
    asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ), "leads": leads}
    asked |= {"parent": os.getppid(), "umask": os.umask(0)}
    socket.send_fds(connection, [b"?"], [0, 1, 2])
    connection.sendall(json.dumps(asked).encode() + b"\n")
    former = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until it is known who to pass them on to
    fork = int(receive(connection))
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: os.killpg(fork, number) if leads else os.kill(fork, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, former)
    status = int(receive(connection) or 1)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


# --- the process that forks -------------------------------------------------------------------------------


def serve(address: str, modules: list[str]) -> None:
    """Import `modules`, then fork for each connection, until standard input ends."""
    import contextlib
    import gc
    import importlib
    import pkgutil
    import select

    sys.path[0] = os.getcwd()  # and not the folder of the tests
    for name in modules:
        module = importlib.import_module(name.removesuffix(".*"))
        if name.endswith(".*"):
            below = [each.name for each in pkgutil.walk_packages(module.__path__, f"{module.__name__}.")]
            for each in below:
                if not each.endswith("__main__"):
                    importlib.import_module(each)
    gc.freeze()  # or every fork looks through all of it for garbage, and copies it
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    forks: dict[socket.socket, tuple[int, int]] = {}  # who asked, and the fork with its descriptor
    while True:
        ends = {descriptor: asker for asker, (_, descriptor) in forks.items()}
        readable = select.select([0, listening, *forks, *ends], [], [])[0]
        if 0 in readable:
            for _, descriptor in forks.values():
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            return
        if listening in readable:
            asker = listening.accept()[0]
            forks[asker] = begin(asker)
        for asker, (fork, descriptor) in list(forks.items()):
            if descriptor in readable:
                status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
                with contextlib.suppress(OSError):  # it was killed
                    asker.sendall(f"{status}\n".encode())
            elif asker in readable:  # it was killed
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                os.waitpid(fork, 0)
            else:
                continue
            del forks[asker]
            os.close(descriptor)
            asker.close()


def begin(asker: socket.socket) -> tuple[int, int]:
    """Fork for `asker`; returns the fork's number and a descriptor that becomes readable with its end."""
    _, streams, _, _ = socket.recv_fds(asker, 1, 3)
    asked = json.loads(receive(asker))
    fork = os.fork()
    if fork == 0:
        become(asked, streams)
    for stream in streams:
        os.close(stream)
    asker.sendall(f"{fork}\n".encode())
    return fork, os.pidfd_open(fork)


def become(asked: dict, streams: list[int]) -> None:
    """What the interpreter does from its start to its end, with the words that were asked for."""
    import atexit
    import random
    import threading
    import traceback

    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 1 << 10)
        if asked["leads"]:
            os.setsid()
        os.chdir(asked["folder"])
        os.umask(asked["umask"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.getppid = lambda: asked["parent"]  # its own parent is the process that forks
        os.nice = lambda _: 0  # on cores that other tests keep busy, a test would wait for its decoders
        random.seed()
        sys.stdin = sys.__stdin__ = open(0)  # noqa: SIM115
        sys.stdout = sys.__stdout__ = open(1, "w")  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace")  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run(asked["words"])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException as fault:
            traceback.print_exc()
            code = -signal.SIGINT if isinstance(fault, KeyboardInterrupt) else 1
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)


def run(words: list[str]) -> None:
    """As `python WORDS...`: -c CODE, -m MODULE or a file."""
    import runpy

    how, *rest = words
    if how == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        program = sys.modules["__main__"] = type(sys)("__main__")
        exec(compile(rest[0], "<string>", "exec"), program.__dict__)
    elif how == "-m":
        sys.argv = rest
        sys.path[0] = os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = os.path.dirname(how)
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        ask(sys.argv[1], sys.argv[2:])
