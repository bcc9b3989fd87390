"""Token counts of one attempt, the same for every vendor."""

from __future__ import annotations

from dataclasses import field

from agentflow.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one attempt used, as the provider billed it.

    `input_tokens` **includes** cached reads and cache writes (the OpenAI convention; the
    Anthropic adapter adds them). `output_tokens` includes reasoning. Every detail is a part of
    its total. A field that the provider did not report is 0; usage that is not known at all is
    ``None`` instead of a `Usage`.

    Attributes:
        input_tokens: All input tokens.
        output_tokens: All output tokens.
        cache_read_tokens: Input tokens read from the provider's cache.
        cache_write_tokens: Input tokens written to it, all times to live together.
        cache_write_1h_tokens: Of those, for one hour (Anthropic).
        cache_write_12h_tokens: Of those, for twelve hours (OpenAI).
        reasoning_tokens: Output tokens spent on reasoning.
        input_audio_tokens: Audio within the input.
        output_audio_tokens: Audio within the output.
        web_search_count: Number of web searches that the provider ran.
        web_fetch_count: Number of web fetches that the provider ran.
        iterations: Per-iteration usage (Anthropic compaction, advisor, fallback), as reported.
        unknown: Fields that the adapter did not understand, as reported.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_write_12h_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    web_search_count: int = 0
    web_fetch_count: int = 0
    iterations: tuple[dict[str, object], ...] = ()
    unknown: dict[str, object] = field(default_factory=dict)

    def __add__(self, other: Usage) -> Usage:
        """Return the sum of both, field by field."""
        numbers = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__slots__
            if name not in {"iterations", "unknown"}
        }
        return Usage(
            **numbers,
            iterations=self.iterations + other.iterations,
            unknown={**self.unknown, **other.unknown},
        )
