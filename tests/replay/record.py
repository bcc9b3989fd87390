"""``python -m tests.replay.record``: adds golden histories that do not exist yet. Never edits one.

Each is a JSONL export of a run of a story (stories.py) and a file with what it ended with.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from agentflow.app import Flow
from agentflow.codec import PlainCipher, to_json
from agentflow.errors import RunFailedError
from agentflow.providers.scripted import call
from agentflow.testing.stage import Stage, result_of
from tests.replay.stories import STORIES, Story

GOLDEN = Path(__file__).parent / "golden"
SCRIPTS: dict[str, Any] = {
    "golden": [
        [call("golden_weather", city="Oslo"), call("golden_weather", city="Rome")],
        call("golden_mail", text="umbrella"),
        "Take an umbrella.",
        "You are welcome.",
    ],
    "golden-reporter": ["Rain."],
}


def record(name: str, story: Story) -> None:
    """Run *story* and write its history."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(path=Path(folder) / "golden.db", scripts=SCRIPTS)

        async def work(flow: Flow) -> tuple[Any, list[dict[str, Any]]]:
            run = await flow.start(story.workflow, *story.args, id=f"golden-{name}")
            try:
                outcome: Any = {"completed": await result_of(flow, run, story.people)}
            except RunFailedError as e:
                outcome = {"ended": e.message}
            row = await run.info()
            store: Any = flow.store
            return outcome, await store.export_run(row.pk, PlainCipher())

        outcome, lines = stage.do(work)
    outcome = to_json(outcome, Any, "outcome")
    text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
    (GOLDEN / f"{name}.jsonl").write_text(text)
    (GOLDEN / f"{name}.expected.json").write_text(json.dumps(outcome, indent=1) + "\n")


def main() -> int:
    """Record what is missing."""
    for name, story in STORIES.items():
        if not (GOLDEN / f"{name}.jsonl").exists():
            record(name, story)
            print(f"recorded {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
