"""The reference says what the code says."""

from __future__ import annotations

import pytest

from tests.docs.reference import MAKERS, PAGES


@pytest.mark.parametrize("name", MAKERS)
def test_a_reference_page_is_up_to_date(name: str) -> None:
    """A page that is made from the code is made again when the code changes."""
    written = (PAGES / name).read_text(encoding="utf-8")

    assert written == MAKERS[name](), "run: python -m tests.docs.reference"
