"""The house rules that a machine can check: imports, the network, what a commit may name."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = re.compile(
    r"\b(?:pypi|pythonhosted|npmjs|yarnpkg|crates|conda|anaconda)\.(?:org|com|io|dev)\b"
    r"|\bproxy\.golang\b|\bdeb\.debian\b",
    re.IGNORECASE,
)
MACHINE_PATH = re.compile(
    r"(?<![\w.~-])/(?:home|Users|root|work|opt|mnt|tmp)/\w|\b[A-Za-z]:\\Users\\"
)
LOCK_FILES = re.compile(r"(?:\.lock|-lock\.(?:json|ya?ml)|(?:^|/)pylock\..*toml|\.lockb)$")


def project_files() -> list[str]:
    """Return the paths of all files that are, or would be, committed, relative to the root."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return sorted(p for p in set(done.stdout.split("\0")) if p and (ROOT / p).is_file())


def found(pattern: re.Pattern[str], paths: list[str]) -> list[str]:
    """Return ``path:line: match`` for every match of *pattern*."""
    return [
        f"{path}:{number}: {match[0]}"
        for path in paths
        for number, line in enumerate((ROOT / path).read_bytes().splitlines(), start=1)
        for match in pattern.finditer(line.decode(errors="replace"))
    ]


def test_import_contracts_hold() -> None:
    """Every contract in pyproject.toml is kept."""
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command as main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_registry_host() -> None:
    """Where packages come from is the business of who installs them."""
    assert found(REGISTRY, project_files()) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    """Nothing here holds only on the machine where it was written."""
    assert found(MACHINE_PATH, project_files()) == []


def test_no_lock_file_is_kept() -> None:
    """What must be pinned is pinned in pyproject.toml."""
    assert [p for p in project_files() if LOCK_FILES.search(p)] == []


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("https://pypi" + ".org/simple", True),
        ("https://files.pythonhosted" + ".org/x", True),
        ("https://example.org/pypi", False),
    ],
)
def test_the_registry_pattern_catches(text: str, *, caught: bool) -> None:
    """The scan for registry hosts finds what it is there to find."""
    assert bool(REGISTRY.search(text)) is caught


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("open('/ho" + "me/ann/x')", True),
        ("sqlite:////ho" + "me/ann/x.db", True),
        ("C:\\Use" + "rs\\ann", True),
        ("https://example.org/home/ann", False),
        ("a/work/b", False),
        ("~/work/b", False),
    ],
)
def test_the_path_pattern_catches(text: str, *, caught: bool) -> None:
    """The scan for machine paths finds what it is there to find."""
    assert bool(MACHINE_PATH.search(text)) is caught


@pytest.mark.parametrize("address", [("192.0.2.1", 443), ("api.openai.com", 443)])
def test_a_test_cannot_leave_this_machine(address: tuple[str, int]) -> None:
    """Neither an address nor a name of another machine can be reached (192.0.2.0/24: RFC 5737)."""
    with pytest.raises(pytest.fail.Exception, match="a test reached for"):
        socket.create_connection(address, timeout=1)


def test_a_test_can_reach_this_machine() -> None:
    """Loopback servers work by address and by name."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, port), timeout=1).close()
