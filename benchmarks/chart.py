"""One chart as SVG, by hand: what an activity costs, beside the floor and the peers."""

from __future__ import annotations

from typing import Any

_WIDTH, _LEFT, _BAR, _GAP = 860, 250, 24, 8
_COLOURS = {"agentflow": "#2563eb", "floor": "#94a3b8", "DBOS": "#d97706", "LangGraph": "#059669"}
_PANELS = (
    (
        "One run, sequential, FULL: µs per activity", "wall_us",
        (("floor", "a/floor"), ("agentflow", "b/agentflow"),
         ("LangGraph", "b/langgraph"), ("DBOS", "b/dbos")),
    ),
    (
        "200 runs at once, FULL: activities per second", "per_second",
        (("agentflow", "c/agentflow"), ("LangGraph", "c/langgraph"), ("DBOS", "c/dbos")),
    ),
    (
        "kill -9 after 5,000 activities: ms from process start to a new one", "start_to_new_ms",
        (("agentflow", "e/agentflow-5000"), ("LangGraph", "e/langgraph-5000"),
         ("DBOS", "e/dbos-5000")),
    ),
    (
        "A conversation of 400 turns: bytes on disk per byte said", "ratio",
        (("agentflow", "d/agentflow-400"), ("LangGraph", "d/langgraph-400"),
         ("DBOS", "d/dbos-400")),
    ),
)  # fmt: skip


def svg(results: dict[str, Any]) -> str:
    """Return the chart; a panel's scale is its own, and each bar has its number."""
    parts: list[str] = []
    y = 16
    for title, name, bars in _PANELS:
        y += 18
        parts.append(_text(16, y, title, weight="600"))
        y += 10
        numbers = [(who, results["medians"].get(case, {}).get(name)) for who, case in bars]
        most = max((value for _, value in numbers if value is not None), default=1.0)
        for who, value in numbers:
            y = _bar(parts, y, who, value, most)
        y += 10
    style = 'font-family="system-ui, sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" {style}>'
    return "\n".join(
        [head, f'<rect width="{_WIDTH}" height="{y}" fill="#fff"/>', *parts, "</svg>\n"]
    )


def _bar(parts: list[str], y: int, who: str, value: float | None, most: float) -> int:
    middle = y + _BAR - 8
    parts.append(_text(_LEFT - 120, middle, who))
    if value is None:
        parts.append(_text(_LEFT, middle, "not measured"))
    else:
        width = max(1.0, value / most * (_WIDTH - _LEFT - 110))
        size = f'width="{width:.1f}" height="{_BAR - 4}"'
        parts.append(f'<rect x="{_LEFT}" y="{y}" {size} rx="2" fill="{_COLOURS[who]}"/>')
        number = f"{value:,.0f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004 -- digits
        parts.append(_text(_LEFT + width + 8, middle, number))
    return y + _BAR + _GAP // 2


def _text(x: float, y: float, words: str, *, weight: str = "400") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-weight="{weight}" fill="#0f172a">{words}</text>'
