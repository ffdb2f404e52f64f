"""A METEOR that starts in a second, and captions that have broken scorers."""

import gzip
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from pycocoevalcap.meteor import meteor as pycocoevalcap_meteor
from pycocoevalcap.tokenizer import ptbtokenizer

from calmctl.captions.java import Java, find_java

# The real table of 5 million paraphrases takes ten seconds to read; METEOR is the same with these.
PARAPHRASES = [(0.5, "is talking about", "speaks of"), (0.25, "a man", "some guy"), (0.3, "a bike", "a bicycle")]


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's cache is read or written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def java() -> Java:
    return find_java()


@pytest.fixture
def java_on_path(java: Java, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pycocoevalcap itself needs."""
    monkeypatch.setenv("PATH", str(Path(java.command).parent) + os.pathsep + os.environ["PATH"])


def install(folder: Path) -> Path:
    """A METEOR with few paraphrases and a tokenizer in `folder`, as an installer would lay them out."""
    (folder / "meteor" / "data").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    source = Path(pycocoevalcap_meteor.__file__).parent
    # A copy: through a link METEOR would find the paraphrases beside the original.
    shutil.copyfile(source / pycocoevalcap_meteor.METEOR_JAR, folder / "meteor" / pycocoevalcap_meteor.METEOR_JAR)
    jar = ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    os.symlink(Path(ptbtokenizer.__file__).parent / jar, folder / "tokenizer" / jar)
    lines = [str(each) for paraphrase in PARAPHRASES for each in paraphrase]
    with gzip.open(folder / "meteor" / "data" / "paraphrase-en.gz", "wt") as table:
        table.write("\n".join(lines) + "\n")
    return folder


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pycocoevalcap's modules, and so ours, find their jars in `folder`."""
    monkeypatch.setattr(pycocoevalcap_meteor, "__file__", str(folder / "meteor" / "meteor.py"))
    monkeypatch.setattr(ptbtokenizer, "__file__", str(folder / "tokenizer" / "ptbtokenizer.py"))


@pytest.fixture(scope="session")
def with_small_meteor(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], AbstractContextManager[None]]:
    """Uses one small METEOR for the length of a block: for numbers that several tests expect, computed once."""
    place = install(tmp_path_factory.mktemp("packages"))

    @contextmanager
    def using() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
            use(place, monkeypatch)
            yield

    return using


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Installs into a folder, and has that installation used."""

    def installed_in(folder: Path) -> Path:
        use(install(folder), monkeypatch)
        return folder

    return installed_in


@pytest.fixture
def small_meteor(tmp_path: Path, installed: Callable[[Path], Path]) -> Path:
    """METEOR with few paraphrases in an ordinary folder."""
    return installed(tmp_path / "packages")


@pytest.fixture
def their_meteor(java_on_path: None) -> Iterator[pycocoevalcap_meteor.Meteor]:
    """pycocoevalcap's METEOR; it does not close its pipes itself."""
    meteor = pycocoevalcap_meteor.Meteor()
    yield meteor
    meteor.meteor_p.stdout.close()
    meteor.meteor_p.stderr.close()


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Java]:
    """Makes a Java out of a shell script."""
    if shutil.which("sh") is None:
        pytest.skip("no POSIX shell")

    def make(body: str) -> Java:
        path = tmp_path / "java"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return Java(str(path), "0", "test")

    return make


@pytest.fixture
def is_running() -> Callable[[int], bool]:
    """Tells whether a process lives; one that is dead and not yet collected does not."""

    def lives(pid: int) -> bool:
        try:
            os.kill(pid, 0)
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except ProcessLookupError:
            return False
        except FileNotFoundError:  # gone in between, or a system without /proc
            return not Path("/proc/self").exists()

    return lives
