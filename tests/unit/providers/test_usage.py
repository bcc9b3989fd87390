"""Each vendor's usage in our words: input includes what the cache read and wrote."""

from __future__ import annotations

from agentflow.llm.usage import Usage
from agentflow.providers import anthropic, openai_chat, openai_responses


def test_responses() -> None:
    """Cached and cache-write tokens are inside; searches are counted beside."""
    usage = openai_responses.read_usage(
        {
            "usage": {
                "input_tokens": 1000,
                "input_tokens_details": {
                    "cached_tokens": 600,
                    "cache_write_tokens": 300,
                    "cache_write_tokens_details": {"ttl_30m_tokens": 100, "ttl_12h_tokens": 200},
                },
                "output_tokens": 50,
                "output_tokens_details": {"reasoning_tokens": 30},
                "total_tokens": 1050,
            },
            "tool_usage": {"web_search": {"num_requests": 2}, "image_gen": {"input_tokens": 0}},
        }
    )

    assert usage == Usage(
        input_tokens=1000,
        output_tokens=50,
        cache_read_tokens=600,
        cache_write_tokens=300,
        cache_write_12h_tokens=200,
        reasoning_tokens=30,
        web_search_count=2,
    )


def test_images_that_a_response_made_are_not_understood() -> None:
    """Image generation has prices of its own: it must not pass as nothing."""
    usage = openai_responses.read_usage(
        {
            "usage": {"input_tokens": 1, "output_tokens": 1},
            "tool_usage": {"image_gen": {"input_tokens": 9, "output_tokens": 8}},
        }
    )

    assert usage is not None
    assert usage.unknown == {
        "tool_usage.image_gen.input_tokens": 9,
        "tool_usage.image_gen.output_tokens": 8,
    }


def test_chat() -> None:
    """Details are parts of their totals; rejected predictions are inside the output."""
    usage = openai_chat.read_usage(
        {
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 40,
                "total_tokens": 140,
                "prompt_tokens_details": {
                    "cached_tokens": 64,
                    "cache_write_tokens": 5,
                    "audio_tokens": 3,
                    "text_tokens": 90,
                    "image_tokens": 7,
                },
                "completion_tokens_details": {
                    "reasoning_tokens": 10,
                    "audio_tokens": 2,
                    "accepted_prediction_tokens": 4,
                    "rejected_prediction_tokens": 6,
                },
            }
        }
    )

    assert usage == Usage(
        input_tokens=100,
        output_tokens=40,
        cache_read_tokens=64,
        cache_write_tokens=5,
        reasoning_tokens=10,
        input_audio_tokens=3,
        output_audio_tokens=2,
    )


def test_anthropic() -> None:
    """Cache reads and writes are added to the input; iterations stay as reported."""
    compaction = {"type": "compaction", "input_tokens": 500, "output_tokens": 20}
    usage = anthropic.read_usage(
        {
            "usage": {
                "input_tokens": 10,
                "cache_read_input_tokens": 200,
                "cache_creation_input_tokens": 30,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 10,
                    "ephemeral_1h_input_tokens": 20,
                },
                "output_tokens": 7,
                "output_tokens_details": {"thinking_tokens": 3},
                "server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 2},
                "service_tier": "standard",
                "iterations": [compaction],
            }
        }
    )

    assert usage == Usage(
        input_tokens=240,
        output_tokens=7,
        cache_read_tokens=200,
        cache_write_tokens=30,
        cache_write_1h_tokens=20,
        reasoning_tokens=3,
        web_search_count=1,
        web_fetch_count=2,
        iterations=(compaction,),
    )


def test_no_usage_is_unknown() -> None:
    """A missing report, or one without its totals, is None."""
    for read in (openai_responses.read_usage, openai_chat.read_usage, anthropic.read_usage):
        assert read({}) is None
        assert read({"usage": None}) is None
        assert read({"usage": {"input_tokens": "many"}}) is None


def test_a_stream_without_final_counts_is_unknown() -> None:
    """Anthropic's first event counts one output token; that is not what was used."""
    stream = anthropic._Stream()
    start = {"id": "m", "usage": {"input_tokens": 5, "output_tokens": 1}}
    stream.feed({"type": "message_start", "message": start})
    stream.feed({"type": "message_delta", "delta": {"stop_reason": "end_turn"}})
    stream.feed({"type": "message_stop"})

    assert stream.answer is not None
    assert anthropic.read_usage(stream.answer) is None


def test_the_end_of_a_stream_counts_and_its_start_explains() -> None:
    """Anthropic's final counts win; cache split, tier and place are those of the start."""
    stream = anthropic._Stream()
    split = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 4}
    first = {"input_tokens": 5, "output_tokens": 1, "cache_creation": split, "speed": "fast"}
    stream.feed({"type": "message_start", "message": {"id": "m", "usage": first}})
    final = {"input_tokens": None, "output_tokens": 9, "cache_creation_input_tokens": 4}
    stream.feed({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": final})
    stream.feed({"type": "message_stop"})

    assert stream.answer is not None
    assert stream.answer["usage"]["speed"] == "fast"
    assert anthropic.read_usage(stream.answer) == Usage(
        input_tokens=9, output_tokens=9, cache_write_tokens=4, cache_write_1h_tokens=4
    )
