"""docker/*.Dockerfile: what they copy and install is there, and the steps of the CPU's run in a plain folder.

hadolint reads them too, in `make lint`.
"""

import fnmatch
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import CHECKOUT, clean_environment

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 reads TOML with the package tomli")

DOCKERFILES = sorted((CHECKOUT / "docker").glob("*.Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, its arguments) of a Dockerfile, lines that end in a backslash joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in joined if line.strip()]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_each_installs_plsc_for_its_device(path):
    steps = instructions(path)
    assert steps[0][0] == "FROM"
    version = re.search(r"python:(3\.\d+)-", steps[0][1])[1]
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]
    runs = " ; ".join(arguments for name, arguments in steps if name == "RUN")
    device = path.stem
    assert f"/opt/plsc[{device}]" in runs
    assert device in project["optional-dependencies"]
    assert ("COPY", ". /opt/plsc") in steps
    assert [
        name for name, _ in steps if name not in {"FROM", "ENV", "ARG", "RUN", "COPY", "USER", "WORKDIR", "CMD"}
    ] == []
    assert ("USER", "1000") in steps and "--uid 1000" in runs
    # what docker run --user chooses may write there, too, caches included
    assert "mkdir --mode=1777 /runs" in runs and ("ENV", "HOME=/runs") in steps and ("WORKDIR", "/runs") in steps


def test_the_manifest_of_kubernetes_fits_the_image():
    """Its program is where the image has it, and its user may write to the volume."""
    page = (CHECKOUT / "docs" / "cluster.md").read_text()
    [text] = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "kind: Job" in block]
    pod = yaml.safe_load(text)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    program = Path(container["args"][0])
    assert (CHECKOUT / program.relative_to("/opt/plsc")).is_file()
    assert f"USER {pod['securityContext']['fsGroup']}\n" in (CHECKOUT / "docker" / "gpu.Dockerfile").read_text()
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert container["workingDir"] in mounts and "/dev/shm" in mounts


def test_what_is_copied(tmp_path):
    """Every file that git has, and no folder that git leaves out."""
    copy_as_docker_does(tmp_path / "copy")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    missing = [name for name in listed.split("\0") if name and not os.path.lexists(tmp_path / "copy" / name)]
    assert missing == []
    for folder in (".git", ".venv", "output", "dataset", "build", "plsc.egg-info"):
        assert not (tmp_path / "copy" / folder).exists(), folder


def test_the_gpus_image_names_the_argument_that_it_needs(tmp_path):
    """Without PADDLE_INDEX the step fails with the reason."""
    [step] = [a for name, a in instructions(CHECKOUT / "docker" / "gpu.Dockerfile") if name == "RUN" and "pip" in a]
    done = subprocess.run(["sh", "-c", step], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 1
    assert "--build-arg PADDLE_INDEX" in done.stderr


# what a test may not do to the machine: it is written down, or asked for without being done
STAND_INS = {
    "apt-get": 'case "$1" in install) exec /usr/bin/apt-get --simulate --quiet "$@";; esac',
    "useradd": "",
    "rm": '[ "$2" = /var/lib/apt/lists/* ] || [ "${2#/var/lib/apt/lists}" != "$2" ]',
}


@pytest.mark.long
def test_the_steps_of_the_cpus_image(tmp_path):
    """In a virtual environment for the image's Python, and folders below tmp_path for /opt and /runs."""
    index = subprocess.run([sys.executable, "-m", "pip", "index", "versions", "tqdm"], capture_output=True, text=True)
    if index.returncode != 0:
        pytest.skip(f"pip reaches no index: {index.stderr.strip().splitlines()[-1]}")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    shims = tmp_path / "shims"
    shims.mkdir()
    for name, script in STAND_INS.items():
        (shims / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >> {shlex.quote(str(tmp_path / "called.txt"))}\n{script}\n'
        )
        (shims / name).chmod(0o755)
    path = f"{shims}:{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"
    env = clean_environment(PATH=path, PYTHONPATH="", HOME=str(tmp_path))
    here, there = {"/opt/plsc": str(tmp_path / "opt"), "/runs": str(tmp_path / "runs")}, Path(tmp_path)

    def local(text: str) -> str:
        for outside, inside in here.items():
            text = re.sub(rf"{outside}(?=[\s\['\"]|$)", inside, text)
        return text

    def run(command: list[str]) -> str:
        done = subprocess.run(command, cwd=there, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    printed = ""
    for name, arguments in instructions(CHECKOUT / "docker" / "cpu.Dockerfile"):
        if name == "RUN":
            run(["sh", "-ec", local(arguments)])
        elif name == "COPY":
            copy_as_docker_does(tmp_path / "opt")
        elif name == "ENV":
            env |= dict(part.split("=", 1) for part in local(arguments).split())
        elif name == "WORKDIR":
            there = Path(local(arguments))
        elif name == "CMD":
            printed = run([part.strip(' "') for part in arguments.strip("[]").split(",")])
    called = (tmp_path / "called.txt").read_text()
    assert "apt-get install --yes --no-install-recommends libgomp1" in called
    assert "useradd" in called
    assert stat.S_IMODE((tmp_path / "runs").stat().st_mode) == 0o1777
    assert env["HOME"] == str(tmp_path / "runs")
    assert there == tmp_path / "runs"
    assert "plsc <command>" in printed or "usage: plsc" in printed
    run(["plsc", "train", "-c", "digits", "-o", "Global.max_train_step=2", "-o", "Global.output_dir=output/digits"])
    assert (there / "output" / "digits" / "metrics.jsonl").is_file()
    mode = (tmp_path / "opt" / "tools" / "train.py").stat().st_mode
    assert mode & stat.S_IROTH, "the user of the image reads the programs of the launcher"


def copy_as_docker_does(folder: Path) -> None:
    """The checkout without what .dockerignore names: at its top, and at any depth after **/."""
    patterns = (CHECKOUT / ".dockerignore").read_text().split()
    anywhere = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    at_top = [pattern for pattern in patterns if not pattern.startswith("**/")]

    def left_out(directory: str, names: list[str]) -> set[str]:
        here = anywhere + (at_top if Path(directory) == CHECKOUT else [])
        return {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in here)}

    shutil.copytree(CHECKOUT, folder, symlinks=True, ignore=left_out)
