"""``agentflow check``: what would not replay, found by reading the code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
from rich.text import Text

from agentflow.cli.exit_code import ExitCode
from agentflow.cli.option import json_option
from agentflow.cli.output import console, note, write_items
from agentflow.engine.check import Finding, check_source
from agentflow.errors import LoadError

_SKIPPED = {"node_modules", "site-packages", "build", "dist"}


@click.command("check")
@click.argument("paths", metavar="FILE...", nargs=-1, required=True)
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@json_option
def check(*, paths: tuple[str, ...], strict: bool, as_json: bool) -> int:
    """Find code in workflows that will not replay, without running it.

    Looks at functions under @workflow and at those that they call in the same file; a folder means
    all Python files in it. A comment `# agentflow: allow` silences its line. Exit code 1 says that
    something was found.
    """
    files = list(dict.fromkeys(file for path in paths for file in files_of(Path(path))))
    findings = [finding for file in files for finding in check_file(file)]
    bad = [f for f in findings if strict or f.severity == "error"]
    if as_json:
        write_items([asdict(f) for f in findings], files=len(files))
    else:
        for finding in findings:
            _write(finding)
        errors = sum(f.severity == "error" for f in findings)
        counts = {"file": len(files), "error": errors, "warning": len(findings) - errors}
        note(", ".join(f"{n} {word}{'' if n == 1 else 's'}" for word, n in counts.items()))
    return ExitCode.FAILED if bad else ExitCode.DONE


def files_of(path: Path) -> Iterator[Path]:
    """Yield the Python files of a file or folder.

    Raises:
        LoadError: it does not exist.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*.py")):
            inner = file.relative_to(path).parts
            if not any(part.startswith(".") or part in _SKIPPED for part in inner):
                yield file
    elif path.is_file():
        yield path
    else:
        msg = f"there is no file {path}"
        raise LoadError(msg)


def check_file(file: Path) -> list[Finding]:
    """Return what is found in one file.

    Raises:
        LoadError: it cannot be read.
    """
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        msg = f"{file} cannot be read: {e}"
        raise LoadError(msg) from e
    return check_source(source, str(file))


def _write(finding: Finding) -> None:
    place = f"{finding.path}:{finding.line}:{finding.column}"
    style = "red" if finding.severity == "error" else "yellow"
    out = console()
    out.print(Text.assemble((place, "bold"), " ", (finding.code, style), f" {finding.message}"))
    if finding.hint:
        out.print(Text(f"  {finding.hint}", "dim"))
