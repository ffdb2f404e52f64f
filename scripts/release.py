"""Build what a release consists of, and try it where no checkout is.

    make release

Into dist/: the source archive, the wheel, the licences of what an installation brings, and the digests of these. The
wheel that the source archive builds must hold the same files as the wheel built here. The wheel is then unpacked and
its first commands are run from an empty folder, with nothing of this checkout on Python's path. Nothing is uploaded.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from licences import licence_list

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
LARGEST_MB = 12  # the small CLIP of the demo is most of it

FIRST_COMMANDS = (
    "--version",
    "recipes list",
    "recipes show demo",
    "anchors list",
    "data where msrvtt",
    "recipes keys optim",
    "train --help",
    "train msrvtt --dry-run",  # without the data: one sentence that says where it belongs
)
REFUSED = {"train msrvtt --dry-run": "put the annotation files and clips of msrvtt there"}


def main() -> None:
    """Build, compare, try, list, and say what was made."""
    DIST.mkdir(exist_ok=True)
    for former in DIST.iterdir():
        former.unlink()
    _build(ROOT, DIST, "--sdist", "--wheel")
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with tarfile.open(source) as archive:
            archive.extractall(folder / "source", filter="data")
        (unpacked,) = (folder / "source").iterdir()
        _build(unpacked, folder / "again", "--wheel")
        (again,) = (folder / "again").glob("*.whl")
        if _contents(again) != _contents(wheel):
            sys.exit(f"{source.name} builds another wheel than the checkout does")
        _try(wheel, folder)
    inside = _contents(wheel)
    strange = [name for name in inside if "tests/" in name or "__pycache__" in name]
    if strange or wheel.stat().st_size > LARGEST_MB << 20:
        sys.exit(f"{wheel.name} is {wheel.stat().st_size >> 20} MB and holds {', '.join(strange) or 'no strangers'}")
    (DIST / "LICENCES.md").write_text(licence_list(), encoding="utf-8")
    made = sorted(path for path in DIST.iterdir() if not path.name.startswith("."))
    digests = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in made]
    (DIST / "SHA256SUMS").write_text("\n".join(digests) + "\n", encoding="utf-8")
    print("\n".join(digests))
    version = wheel.name.split("-")[1]
    print(f"\n{len(inside)} files in the wheel. To publish: git tag -s v{version}, push the tag, upload dist/.")


def _build(source: Path, target: Path, *kinds: str) -> None:
    # hatchling is locked with everything else, and a build may fetch nothing.
    command = [sys.executable, "-m", "uv", "build", "--quiet", "--no-build-isolation", "--out-dir", str(target), *kinds]
    subprocess.run([*command, str(source)], check=True)


def _contents(wheel: Path) -> dict[str, str]:
    """Digest of every file in a wheel, apart from its own list of them."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("RECORD")]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def _try(wheel: Path, folder: Path) -> None:
    """Run the first commands of a newcomer from an empty folder with the unpacked wheel alone."""
    site, empty = folder / "site", folder / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # -I: neither the current folder nor PYTHONPATH; the installation of this checkout must not answer instead.
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import calmctl; "
        f"assert calmctl.__file__.startswith({str(site)!r}), calmctl.__file__; "
        "from calmctl.cli.main import main; main()"
    )
    for arguments in FIRST_COMMANDS:
        command = [sys.executable, "-I", "-c", program, *arguments.split()]
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
        expected = REFUSED.get(arguments)
        right = done.returncode == 0 if expected is None else done.returncode != 0 and expected in done.stderr
        print(f"{'ok  ' if right else 'FAIL'} calmctl {arguments}")
        if not right:
            sys.exit(done.stdout + done.stderr)


if __name__ == "__main__":
    main()
