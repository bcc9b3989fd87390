"""Which model the examples ask: a real one where you have a key, otherwise the example's script."""

from __future__ import annotations

import os


def model(script: str) -> str:
    """Return ``provider:name`` for an agent.

    `EXAMPLE_MODEL` names any model. Without it, a key or an address in the environment chooses one,
    and where there is none, `scripted:` answers without a network.

    Args:
        script: Name of the script that answers where there is no key.
    """
    if chosen := os.environ.get("EXAMPLE_MODEL"):
        return chosen
    if os.environ.get("OPENAI_BASE_URL"):  # a server of your own: most speak Chat Completions
        return "openai-chat:gpt-6-luna"
    if os.environ.get("OPENAI_API_KEY"):
        return "openai:gpt-6-luna"
    if os.environ.get("ANTHROPIC_API_KEY"):
        return "anthropic:claude-haiku-5-5"
    return f"scripted:{script}"
