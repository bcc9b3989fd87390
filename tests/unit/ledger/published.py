"""What the vendors publish: the rates that the price cases are reckoned with, page and date beside.

Written down by hand, and never read from the price book that is under test. A rate is USD per
million tokens; a web search or fetch is USD per thousand. Where a page bears no date, the rate is
as of the release of genai-prices that quotes the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

UNDATED = "as of genai-prices 0.2.3"
READ_12 = "read on 2026-10-12 (genai-prices 0.2.3)"
READ_14 = "read on 2026-10-14 (genai-prices 0.2.3)"
READ_26 = "read on 2026-10-26 (genai-prices 0.2.3)"
FACTS = "read in November 2026"

CLAUDE = "https://www.anthropic.com/pricing#api"
CLAUDE_MODEL = "https://platform.claude.com/docs/en/about-claude/pricing#model-pricing"
CLAUDE_LONG = "https://platform.claude.com/docs/en/about-claude/pricing#long-context-pricing"
CLAUDE_FAST = "https://platform.claude.com/docs/en/about-claude/pricing#fast-mode-pricing"
CLAUDE_BATCH = "https://platform.claude.com/docs/en/build-with-claude/batch-processing#pricing"
CLAUDE_GEO = "https://platform.claude.com/docs/en/manage-claude/data-residency"
GPT = "https://developers.openai.com/api/docs/pricing"
GPT_CHANGES = "https://developers.openai.com/api/docs/changelog"
GPT_MODELS = "https://developers.openai.com/api/docs/models"
GPT_REGION = "https://developers.openai.com/api/docs/guides/data-residency"

OCTOBER_12, OCTOBER_14 = date(2026, 10, 12), date(2026, 10, 14)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a price list.

    Attributes:
        page: Where it is published.
        held: When it held, as far as the source says.
        usd: USD per million tokens, or per thousand web searches or fetches, by unit.
        first: The first UTC day of the rate, where there is one.
        last: Its last day, where another one followed.
        is_long: Whether it is for long context only.
    """

    page: str
    held: str
    usd: Mapping[str, str]
    first: date | None = None
    last: date | None = None
    is_long: bool = False


@dataclass(frozen=True, kw_only=True)
class Factor:
    """What a list says that a rate is multiplied by.

    Attributes:
        page: Where it is published.
        held: When it held, as far as the source says.
        times: The factor.
    """

    page: str
    held: str
    times: str


FACTORS: Mapping[str, Factor] = {
    # US only: Opus 4.6 and every later model, all tokens.
    "inference_geo": Factor(page=CLAUDE_GEO, held=FACTS, times="1.1"),
    # The page: "charged a 10% uplift for models released on or after March 5, 2026".
    "region": Factor(page=GPT_REGION, held=FACTS, times="1.1"),
    # $60 for $10, $300 for $50: gpt-6-astra is the only model with a published ultrafast rate.
    "ultrafast": Factor(page=GPT, held="of 2026-09-29", times="6"),
    # A write that lives twelve hours over uncached input: $2.50 for $1.
    "cache_write_12h": Factor(page=f"{GPT_MODELS}/gpt-6.1-terra", held=READ_26, times="2.5"),
}

PUBLISHED: Mapping[str, Published] = {
    # -- Anthropic
    "opus-5.5": Published(
        page=CLAUDE_MODEL,
        held=UNDATED,
        usd={
            "input": "4", "cache_read": "0.2", "cache_write_5m": "5", "cache_write_1h": "8",
            "output": "20", "web_search": "10", "web_fetch": "0",
        },
    ),
    "opus-5.5 batch": Published(
        page=CLAUDE_BATCH,
        held=READ_14,
        first=OCTOBER_14,
        usd={
            "input": "2", "cache_read": "0.1", "cache_write_5m": "2.5", "cache_write_1h": "4",
            "output": "10", "web_search": "10",  # searches have no batch rate
        },
    ),
    "opus-5.5 fast": Published(
        page=CLAUDE_FAST,
        held=UNDATED,
        usd={
            "input": "8", "cache_read": "0.4", "cache_write_5m": "10", "cache_write_1h": "16",
            "output": "40",
        },
    ),
    "opus-4.6 until March, over 200k": Published(
        page=CLAUDE,
        held="until 2026-03-12 (genai-prices 0.2.3)",
        last=date(2026, 3, 12),
        is_long=True,
        usd={"input": "10", "output": "37.5"},
    ),
    "opus-4.6": Published(
        page=CLAUDE,
        held="from 2026-03-13 (genai-prices 0.2.3)",
        first=date(2026, 3, 13),
        usd={"input": "5", "output": "25"},
    ),
    "opus-4.6 batch": Published(
        page=CLAUDE_BATCH,
        held=READ_14,
        first=OCTOBER_14,
        usd={"input": "2.5", "output": "12.5"},
    ),
    "opus-4.5": Published(page=CLAUDE, held=UNDATED, usd={"input": "5", "output": "25"}),
    "fable-5": Published(page=CLAUDE_MODEL, held=UNDATED, usd={"input": "10", "output": "50"}),
    "sonnet-5.5": Published(
        page=CLAUDE_MODEL,
        held=UNDATED,
        usd={
            "input": "2", "cache_read": "0.1", "cache_write_5m": "2.5", "cache_write_1h": "4",
            "output": "10", "web_search": "10",
        },
    ),
    "sonnet-4.6 until March, over 200k": Published(
        page=CLAUDE,
        held="until 2026-03-12 (genai-prices 0.2.3)",
        last=date(2026, 3, 12),
        is_long=True,
        usd={"input": "6", "cache_read": "0.6", "cache_write_1h": "12", "output": "22.5"},
    ),
    "sonnet-4.5": Published(page=CLAUDE, held=UNDATED, usd={"input": "3", "output": "15"}),
    "haiku-5.5": Published(
        page=CLAUDE_LONG,
        held=UNDATED,
        usd={"input": "0.1", "cache_read": "0.01", "output": "0.5", "web_search": "10"},
    ),
    "haiku-5.5 over 100k": Published(
        page=CLAUDE_LONG,
        held=UNDATED,
        is_long=True,
        usd={
            "input": "0.5", "cache_read": "0.05", "cache_write_5m": "0.625",
            "cache_write_1h": "1", "output": "2.5", "web_search": "10",
        },
    ),
    "haiku-5.5 batch, over 100k": Published(
        page=CLAUDE_BATCH,
        held=READ_14,
        first=OCTOBER_14,
        is_long=True,
        usd={"input": "0.25", "cache_write_5m": "0.3125", "output": "1.25"},
    ),
    "haiku-4.5": Published(page=CLAUDE, held=UNDATED, usd={"input": "1", "output": "5"}),
    # -- OpenAI
    "gpt-6-sol": Published(
        page=f"{GPT_MODELS}/gpt-6-sol",
        held=UNDATED,
        usd={
            "input": "2", "cache_read": "0.2", "cache_write_30m": "2.5", "output": "10",
            "web_search": "10",
        },
    ),
    "gpt-6-sol over 272k": Published(
        page=f"{GPT_MODELS}/gpt-6-sol",
        held=UNDATED,
        is_long=True,
        usd={"input": "4", "cache_read": "0.4", "cache_write_30m": "5", "output": "15"},
    ),
    "gpt-6-sol batch": Published(
        page=GPT,
        held=READ_14,
        first=OCTOBER_14,
        usd={"input": "1", "cache_read": "0.1", "cache_write_30m": "1.25", "output": "5"},
    ),
    "gpt-6-sol flex": Published(
        page=GPT,
        held=READ_12,
        first=OCTOBER_12,
        usd={"input": "1", "cache_read": "0.1", "cache_write_30m": "1.25", "output": "5"},
    ),
    "gpt-6-sol priority": Published(
        page=GPT,
        held=READ_12,
        first=OCTOBER_12,
        usd={"input": "4", "cache_read": "0.4", "cache_write_30m": "5", "output": "20"},
    ),
    "gpt-6-sol priority, over 272k": Published(
        page=GPT,
        held=READ_12,
        first=OCTOBER_12,
        is_long=True,
        usd={"input": "8", "output": "30"},
    ),
    "gpt-6-astra ultrafast": Published(
        page=GPT,
        held="of 2026-09-29",
        usd={"input": "60", "cache_read": "6", "cache_write_30m": "75", "output": "300"},
    ),
    "gpt-6.1-terra": Published(
        page=f"{GPT_MODELS}/gpt-6.1-terra",
        held=READ_26,
        usd={"input": "1", "cache_write_30m": "1.25", "cache_write_12h": "2.5", "output": "5"},
    ),
    "gpt-6.1-terra flex": Published(
        page=GPT, held=READ_26, usd={"input": "0.5", "cache_write_30m": "0.625"}
    ),
    "gpt-5.6-luna until July": Published(
        page=GPT_CHANGES,
        held="until 2026-07-29 (genai-prices 0.2.3)",
        last=date(2026, 7, 29),
        usd={"input": "1", "cache_read": "0.1", "cache_write_30m": "1.25", "output": "6"},
    ),
    "gpt-5.6-luna": Published(
        page=GPT_CHANGES,
        held="from 2026-07-30 (genai-prices 0.2.3)",
        first=date(2026, 7, 30),
        usd={"input": "0.2", "cache_read": "0.02", "cache_write_30m": "0.25", "output": "1.2"},
    ),
    "gpt-5.6-sol": Published(
        page=f"{GPT_MODELS}/gpt-5.6-sol",
        held="from 2026-08-21 (genai-prices 0.2.3)",
        first=date(2026, 8, 21),
        usd={"input": "4", "output": "20"},
    ),
    "gpt-5.4 flex": Published(
        page=GPT,
        held=READ_12,
        first=OCTOBER_12,
        usd={"input": "1.25", "cache_read": "0.13", "output": "7.5"},
    ),
    "gpt-5.4 priority": Published(
        page=GPT,
        held=READ_12,
        first=OCTOBER_12,
        usd={"input": "5", "cache_read": "0.5", "output": "30"},
    ),
    "gpt-5.3": Published(page=GPT, held=UNDATED, usd={"input": "1.75", "output": "14"}),
    "gpt-5": Published(
        page=GPT, held=UNDATED, usd={"input": "1.25", "cache_read": "0.125", "output": "10"}
    ),
    "gpt-5 flex": Published(
        page=GPT,
        held=READ_12,
        first=OCTOBER_12,
        usd={"input": "0.625", "cache_read": "0.0625", "output": "5"},
    ),
    "gpt-5 priority": Published(
        page=GPT,
        held=READ_12,
        first=OCTOBER_12,
        usd={"input": "2.5", "cache_read": "0.25", "output": "20"},
    ),
    "gpt-5-pro": Published(page=GPT, held=UNDATED, usd={"input": "15", "output": "120"}),
    "gpt-4.1 batch": Published(
        page=GPT,
        held=READ_14,
        first=OCTOBER_14,
        # The batch table has no rate of cached input: it keeps the standard one.
        usd={"input": "1", "cache_read": "0.5", "output": "4"},
    ),
    "gpt-4o": Published(page=GPT, held=UNDATED, usd={"input": "2.5", "output": "10"}),
    "gpt-3.5-turbo-1106 batch": Published(
        page=GPT,
        held=READ_14,
        first=OCTOBER_14,
        usd={"input": "1", "output": "2"},  # the batch table lists the standard rates
    ),
    "o3 until June": Published(
        page=GPT,
        held="until 2025-06-09 (genai-prices 0.2.3)",
        last=date(2025, 6, 9),
        usd={"input": "10", "output": "40"},
    ),
    "o3": Published(
        page=GPT,
        held="from 2025-06-10 (genai-prices 0.2.3)",
        first=date(2025, 6, 10),
        usd={"input": "2", "output": "8"},
    ),
    "gpt-audio": Published(
        page=GPT,
        held=UNDATED,
        usd={"input": "2.5", "input_audio": "32", "output": "10", "output_audio": "64"},
    ),
    "gpt-realtime": Published(
        page=f"{GPT_MODELS}/gpt-realtime",
        held=UNDATED,
        usd={"input": "4", "cache_read": "0.4", "input_audio": "32", "output": "16"},
    ),
}  # fmt: skip
