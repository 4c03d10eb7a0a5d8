"""The suite against the built wheel, installed, on every Python and JAX at hand.

`python -m tests.matrix [--pairs 3.11:0.6.0 3.13:newest] [pytest arguments]` builds the wheel once and, for each
pair whose interpreter is found, makes a fresh environment, installs the wheel and what the tests need, and runs
the tests on a copy of the repository without the package. It prints what ran, what passed, and what could not run.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAIRS = ["3.11:0.6.0", "3.11:newest", "3.12:newest", "3.13:newest"]


def run(*command, cwd=ROOT):
    """The command's last line of output; RuntimeError with the end of it all if it fails."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    if done.returncode:
        raise RuntimeError("\n".join(lines[-20:]))
    return lines[-1]


def interpreter(version):
    """The path of a `pythonX.Y` that runs, on PATH or of pyenv, or None."""
    candidates = [shutil.which(f"python{version}")]
    if shutil.which("pyenv"):
        done = subprocess.run(["pyenv", "prefix", version], capture_output=True, text=True)
        candidates.append(shutil.which(f"{done.stdout.strip()}/bin/python"))
    for path in filter(None, candidates):
        # What pyenv leaves on PATH may stand for a version that is not switched on.
        if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def copy_without_the_package(folder):
    """The repository's files, but for `shtopk`: whatever is imported under that name is the wheel's."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if not name.startswith("shtopk/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def one_pair(version, jax, wheel, work, arguments):
    """What came of one pair, in words: its versions and the last line of pytest."""
    base = interpreter(version)
    if base is None:
        return f"not run: no python{version} on PATH or known to pyenv"
    venv, tests = work / "venv", work / "tests"
    copy_without_the_package(tests)
    run(base, "-m", "venv", venv)
    python = venv / "bin" / "python"
    pins = [] if jax == "newest" else [f"jax=={jax}", f"jaxlib=={jax}"]
    run(python, "-m", "pip", "install", "-q", f"{wheel}[test]", *pins)
    where = run(python, "-c", "import shtopk; print(shtopk.__file__)", cwd=tests)
    if "site-packages" not in where:
        raise RuntimeError(f"not the wheel is imported, but {where}")
    result = run(python, "-m", "pytest", "-p", "no:cacheprovider", *arguments, cwd=tests)
    used = run(python, "-c", "import jax; print(jax.__version__)", cwd=tests)
    return f"JAX {used}: {result}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="PYTHON:JAX")
    options, arguments = parser.parse_known_args()
    table, failed = [], False
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", work, ROOT)
        (wheel,) = work.glob("*.whl")
        for pair in options.pairs:
            version, jax = pair.split(":")
            folder = work / f"{version}-{jax}"
            folder.mkdir()
            try:
                said = one_pair(version, jax, wheel, folder, arguments)
            except RuntimeError as error:
                failed, said = True, f"FAILED\n{error}"
            shutil.rmtree(folder)
            table.append(f"Python {version}, JAX {jax}: {said}")
            print(table[-1], flush=True)
    print(f"\n{wheel.name}", *table, sep="\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
