"""Flag > environment > pyproject.toml > default."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.errors import SettingsError
from agentflow.settings import read_settings


def test_the_nearest_word_wins(tmp_path: Path) -> None:
    """Each layer overrides the one below it."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.agentflow]\ndatabase_url = "sqlite:///file.db"\nproject = "file"\n'
    )
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    settings = read_settings({"AGENTFLOW_PROJECT": "environment"}, inner)

    assert settings.database_url == "sqlite:///file.db"
    assert settings.project == "environment"
    assert settings.with_flags(project="flag", durability=None).project == "flag"
    assert settings.durability == "full"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"AGENTFLOW_DURABILITY": "maybe"}, "durability"),
        ({"AGENTFLOW_QUARANTINE_AFTER": "-1"}, "quarantine_after"),
        ({"AGENTFLOW_MAX_PAYLOAD_BYTES": "lots"}, "max_payload_bytes"),
        ({"AGENTFLOW_BACKGROUND": "maybe"}, "background"),
    ],
)
def test_a_value_without_a_meaning_is_named(
    environ: dict[str, str], words: str, tmp_path: Path
) -> None:
    """The error names the setting and what is allowed."""
    with pytest.raises(SettingsError, match=words) as caught:
        read_settings(environ, tmp_path)

    assert caught.value.hint


def test_a_switch_is_on_off_or_unset(tmp_path: Path) -> None:
    """In the environment in words, in the file as TOML has it."""
    assert read_settings({}, tmp_path).background is None
    assert read_settings({"AGENTFLOW_BACKGROUND": "on"}, tmp_path).background is True
    (tmp_path / "pyproject.toml").write_text("[tool.agentflow]\nbackground = false\n")
    assert read_settings({}, tmp_path).background is False


def test_an_unknown_setting_in_the_file_is_named(tmp_path: Path) -> None:
    """A typing error in pyproject.toml is not ignored."""
    (tmp_path / "pyproject.toml").write_text('[tool.agentflow]\ndatabse_url = "x"\n')

    with pytest.raises(SettingsError, match="databse_url"):
        read_settings({}, tmp_path)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        (
            '[tool.agentflow.rates."a:m"]\nrequests_per_minut = 1',
            "rates.a:m has .* requests_per_minut",
        ),
        (
            '[tool.agentflow.rates."a:m"]\ntokens_per_minute = -1',
            "rates.a:m.tokens_per_minute is -1",
        ),
        ('[tool.agentflow.rates."a:m".keys.u]\nrate = 1', "rates.a:m.keys.u has .* rate"),
        ('[tool.agentflow.rates."a:m"]\nkeys = 1', "rates.a:m.keys is 1"),
        ("[tool.agentflow.rates.gpt]\nrequests_per_minute = 1", "rates.gpt is not written"),
        ("[tool.agentflow.rates]\nrequests_per_minute = 1", "rates is"),
        ("[tool.agentflow]\nrates = 5", "rates is 5"),
    ],
)
def test_a_wrong_rate_in_the_file_is_named(toml: str, words: str, tmp_path: Path) -> None:
    """With the place where it stands."""
    (tmp_path / "pyproject.toml").write_text(toml)

    with pytest.raises(SettingsError, match=words) as caught:
        read_settings({}, tmp_path)

    assert "[tool.agentflow.rates." in str(caught.value.hint) or "whole number" in str(
        caught.value.hint
    )


def test_secrets_are_collected_by_name_and_not_shown(tmp_path: Path) -> None:
    """Values of variables that are named like secrets are scrubbed later."""
    settings = read_settings({"X_API_KEY": "value", "HOME": "here"}, tmp_path)

    assert settings.secrets == {"X_API_KEY": "value"}
    assert "value" not in repr(settings)


def test_a_beat_that_does_not_keep_its_lease_is_refused(tmp_path: Path) -> None:
    """Two beats may get lost before anybody takes over."""
    found = read_settings(
        {"AGENTFLOW_LEASE_SECONDS": "2", "AGENTFLOW_BEAT_SECONDS": "0.5"}, tmp_path
    )

    assert (found.lease_seconds, found.beat_seconds) == (2.0, 0.5)
    for wrong in ({"AGENTFLOW_LEASE_SECONDS": "14"}, {"AGENTFLOW_BEAT_SECONDS": "never"}):
        with pytest.raises(SettingsError):
            read_settings(wrong, tmp_path)


def test_settings_in_a_broken_file_are_not_dropped_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another database than the one that was meant would be worked on."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pyproject.toml"
    file.write_text("[tool.agentflow.rates.openai:gpt-6]\nrequests_per_minute = 5\n")

    with pytest.raises(SettingsError, match=r"pyproject\.toml is no TOML.*line 1"):
        read_settings()

    file.write_text("[project]\nname = agentflow\n")
    read_settings()  # it is not ours that is broken
