"""Settings: command line over environment over defaults."""

from __future__ import annotations

import pytest

from rstored.limits import Limits
from rstored.settings import InvalidSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("RSTORED_"):
            monkeypatch.delenv(name)


def test_defaults():
    settings = load_settings()
    assert (settings.dsn, settings.host, settings.port) == ("sqlite:///rstore.db", "127.0.0.1", 8000)
    assert settings.limits == Limits()
    assert (settings.insecure, settings.access_log, settings.docs) == (False, False, True)


def test_the_environment_counts_and_what_is_given_counts_more(monkeypatch):
    monkeypatch.setenv("RSTORED_PORT", "9000")
    monkeypatch.setenv("RSTORED_DSN", "sqlite:///env.db")
    monkeypatch.setenv("RSTORED_ACCESS_LOG", "true")
    monkeypatch.setenv("RSTORED_LIMITS__VALUE_BYTES_MAX", "1000")
    settings = load_settings(dsn="sqlite:///given.db", host=None)
    assert (settings.port, settings.dsn, settings.host) == (9000, "sqlite:///given.db", "127.0.0.1")
    assert settings.access_log is True
    assert settings.limits == Limits(value_bytes_max=1000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RSTORED_PORT", "http"),
        ("RSTORED_PORT", "65536"),
        ("RSTORED_PORT", "-1"),
        ("RSTORED_LOG_LEVEL", "loud"),
        ("RSTORED_DOCS", "perhaps"),
        ("RSTORED_LIMITS__BODY_SECONDS_MAX", "0"),
        ("RSTORED_LIMITS__PAGE_SIZE_MAX", "0"),
        ("RSTORED_LIMITS__PAGE_SIZE_MAXIMUM", "5"),
        ("RSTORED_DNS", "sqlite:///typo.db"),
        ("RSTORED_LIMIT__PAGE_SIZE_MAX", "5"),
        ("rstored_dns", "sqlite:///typo.db"),
        ("RSTORED_LIMITS", "{"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert "\n" not in str(caught.value)
    assert name.lower() in str(caught.value).lower() or name == "RSTORED_LIMITS"
    if len(value) > 3:
        assert value not in str(caught.value)


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_variable_that_is_set_and_empty_is_refused(monkeypatch, blank):
    """Taken for one that is not set, it would serve without TLS, or open, whoever meant to fill it."""
    names = [f"RSTORED_{name.upper()}" for name in Settings.model_fields if name != "limits"]
    limits = [f"RSTORED_LIMITS__{name.upper()}" for name in Limits.model_fields]
    for name in (*names, *limits, "RSTORED_LIMITS", "rstored_tls_cert"):
        with monkeypatch.context() as context:
            context.setenv(name, blank)
            with pytest.raises(InvalidSettings, match=rf"^{name} is set and empty"):
                load_settings()
            # Also where the command line has the same setting.
            with pytest.raises(InvalidSettings, match=rf"^{name} is set and empty"):
                load_settings(dsn="sqlite:///given.db", tls_cert="cert.pem")


@pytest.mark.parametrize("blank", ["", " "])
def test_an_option_that_is_empty_is_refused(blank):
    for name, field in Settings.model_fields.items():
        if field.annotation in (str, str | None):
            with pytest.raises(InvalidSettings, match=rf"^--{name.replace('_', '-')} is empty"):
                load_settings(**{name: blank})


def test_a_wrong_option_is_named_as_an_option():
    with pytest.raises(InvalidSettings, match=r"^--log-level: "):
        load_settings(log_level="loud")


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1
