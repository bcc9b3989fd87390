"""``python -m tests.replay.check FILE…``: replays golden histories under this Python.

Needs the engine only: pydantic is the one package that must be installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from agentflow.codec import Codec, from_json
from agentflow.history import events as ev
from agentflow.testing.replay import assert_replays, read_recording
from tests.replay.stories import STORIES


def check(path: Path) -> None:
    """Replay one golden history and compare its end with what is expected.

    Raises:
        AssertionError: today's code does something else.
    """
    name = path.name.removesuffix(".jsonl")
    workflow = STORIES[name].workflow
    recording = read_recording(path)
    assert_replays(recording, workflow)
    expected: dict[str, Any] = json.loads(path.with_name(f"{name}.expected.json").read_text())
    last = recording.events[-1]
    if "completed" in expected:
        assert isinstance(last, ev.RunCompleted)
        assert last.payload is not None
        codec = Codec()
        data = json.loads(codec.plain(last.payload, recording.bodies))
        assert data == expected["completed"], data
        from_json(data, workflow.returns, "result")
    else:
        assert isinstance(last, (ev.RunFailed, ev.RunCancelled))


def main(paths: list[str]) -> int:
    """Check all files; print what diverges."""
    failed = 0
    for path in paths:
        try:
            check(Path(path))
        except AssertionError as e:
            failed += 1
            print(f"{path}: {e}")
    print(f"{len(paths) - failed} of {len(paths)} replay on Python {sys.version.split()[0]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
