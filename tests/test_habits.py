"""What surrounds the code: metadata, the Makefile, hooks and the workflow agree with each other."""

import re
import subprocess
import sys

import pytest
import yaml

import plsc
from tests.helpers import CHECKOUT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 reads TOML with the package tomli")


def text_of(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads(text_of("pyproject.toml"))


@pytest.fixture(scope="module")
def makefile() -> str:
    return text_of("Makefile")


@pytest.fixture(scope="module")
def workflow() -> dict:
    return yaml.safe_load(text_of(".github/workflows/ci.yml"))


def targets(makefile: str) -> set[str]:
    return set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE).group(1).split())


def released() -> list[tuple[str, str]]:
    """Versions of the changelog with their dates, the newest first."""
    return re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", text_of("CHANGELOG.md"), re.MULTILINE)


def test_the_changelog_has_its_form():
    headings = re.findall(r"^## (.+)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert len(released()) == len(headings) - 1, "a heading is neither [Unreleased] nor [version] - date"
    versions = [tuple(map(int, version.split("."))) for version, _ in released()]
    assert versions == sorted(versions, reverse=True)
    kinds = set(re.findall(r"^### (.+)$", text_of("CHANGELOG.md"), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_version_and_citation_are_the_newest_release():
    version, date = released()[0]
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert (citation["version"], citation["date-released"]) == (version, date)
    assert plsc.__version__ == version


def test_help_shows_every_target(makefile):
    shown = subprocess.run(["make", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^  make ([\w-]+) +\S", shown, re.MULTILINE)
    assert set(listed) == targets(makefile)
    defined = re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE)
    assert set(defined) == targets(makefile), "every target is phony, and every phony target is defined"


def test_every_python_of_the_package_is_tested_by_the_workflow(project, workflow):
    classifiers = project["project"]["classifiers"]
    offered = {
        c.rpartition(" ")[2] for c in classifiers if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", c)
    }
    assert set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == offered
    oldest = min(offered, key=lambda version: int(version.split(".")[1]))
    assert project["project"]["requires-python"] == f">={oldest}"
    assert project["tool"]["mypy"]["python_version"] == oldest
    assert project["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")


def test_the_workflow_runs_what_the_ci_script_runs(makefile, workflow):
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert all(re.fullmatch(r"make [\w-]+", step) and step.split()[1] in targets(makefile) for step in steps), steps
    local = re.findall(r"^make ([\w-]+)$", text_of(".ci/run"), re.MULTILINE)
    assert local[-1] == "test", "the last line that .ci/run prints is pytest's"
    assert set(local) <= {step.split()[1] for step in steps}


def test_hooks_use_programs_that_the_environment_has(project):
    """Each hook runs a script of the checkout or a program of the extra `lint`, as `make lint` does."""
    extra = {re.split(r"[^\w-]", requirement)[0] for requirement in project["project"]["optional-dependencies"]["lint"]}
    [repository] = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        program, *arguments = hook["entry"].split()
        name = program.removeprefix(".venv/bin/")
        assert name != program, hook["id"]
        if name == "python":
            assert (CHECKOUT / arguments[0]).is_file(), hook["id"]
        else:
            assert name in extra and f"$(VENV)/bin/{name}" in text_of("Makefile"), hook["id"]


def test_the_type_checker_leaves_no_module_of_the_public_interface_out(project):
    strict = [o["module"] for o in project["tool"]["mypy"]["overrides"] if o.get("disallow_untyped_defs")]
    assert strict and {"plsc", "plsc.errors", "plsc.files"} <= set(strict[0])
    assert (CHECKOUT / "plsc" / "py.typed").is_file()
