"""The settings of the service. The command line overrides the environment, and that overrides the defaults."""

from __future__ import annotations

import os
import re
from typing import Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from rstored.addresses import Network, canonical_address, network
from rstored.limits import Limits
from rstored.validation import first_failure

_PREFIX: Final = "RSTORED_"
_ADMIN_TOKEN: Final = re.compile(r"[!-~]{32,4096}\Z")
_ORIGIN: Final = re.compile(r"https?://[a-z0-9.\[\]:-]+\Z")
_HOST_NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\Z")


class InvalidSettings(ValueError):
    """A setting is wrong. The message names it, as an option or a variable, in one line."""


class Settings(BaseSettings):
    """The settings of ``rstored``, from variables ``RSTORED_…``, and ``RSTORED_LIMITS__…`` for the limits."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    dsn: str = Field(
        default="sqlite:///rstore.db", description="DSN of the storage, such as `sqlite:///path/to/file.db`"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: int = Field(default=1, ge=1, le=256, description="processes that serve")
    admin_token: SecretStr | None = Field(
        default=None, description="a token that may do everything; 32 characters or more of printable ASCII"
    )
    closed: bool = Field(
        default=False, description="the store is closed, whatever its storage says, and is never served open"
    )
    token_cache_seconds: float = Field(
        default=5,
        ge=0,
        le=300,
        description="how long a verified token is not checked again, even if it is revoked meanwhile",
    )
    insecure: bool = Field(
        default=False, description="listen beyond this machine although anybody may then do anything"
    )
    hosts: str = Field(
        default="",
        description="names and addresses, with commas and without ports, at which clients reach an open store; "
        "it always answers at those of loopback",
    )
    tls_cert: str | None = Field(
        default=None, description="serve TLS with the certificates of this PEM file, the service's own first"
    )
    tls_key: str | None = Field(default=None, description="PEM file of its key, if that is not in the same file")
    tls_key_password: str | None = Field(default=None, repr=False, description="password of the key's file")
    tls_client_ca: str | None = Field(
        default=None, description="take only clients with a certificate that one of this PEM file signed"
    )
    root_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="prefix of every path that a proxy passes on or strips, like `/store`",
    )
    trusted_proxies: str = Field(
        default="", description="addresses and networks, with commas, whose `X-Forwarded-For` and `-Proto` are believed"
    )
    cors_origins: str = Field(
        default="", description="origins, with commas, whose pages may read answers, like `https://app.example`"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level that is logged"
    )
    access_log: bool = Field(default=False, description="log every request, not only those that fail")
    docs: bool = Field(default=True, description="serve `/docs` and `/openapi.json`")
    drain_seconds: float = Field(
        default=0, ge=0, le=3600, description="after SIGTERM, how long to go on serving while `/readyz` says 503"
    )
    shutdown_grace_seconds: int = Field(
        default=10, ge=0, le=3600, description="after that, how long requests under way may take to finish"
    )
    backlog: int = Field(default=2048, ge=1, description="connections that may wait to be accepted")
    limits: Limits = Field(default_factory=Limits, description="bounds on requests, each by its own name")

    @property
    def host_list(self) -> list[str]:
        """The names of an open store, in lower case without a last dot, and its addresses in canonical form."""
        return [_host(name) for name in _listed(self.hosts)]

    @property
    def trusted_proxy_list(self) -> list[Network]:
        """The addresses and networks of trusted proxies."""
        return list(map(network, _listed(self.trusted_proxies)))

    @property
    def cors_origin_list(self) -> list[str]:
        """The origins whose pages may read answers."""
        return _listed(self.cors_origins)

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, text: str) -> str:
        for name in _listed(text):
            _host(name)
        return text

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, text: str) -> str:
        for address in _listed(text):
            try:
                network(address)
            except ValueError:
                raise ValueError("addresses and networks are expected, like 10.0.0.7 or 10.0.0.0/8") from None
        return text

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, text: str) -> str:
        if not all(_ORIGIN.match(origin) for origin in _listed(text)):
            raise ValueError("origins are expected, like https://app.example or http://localhost:3000")
        return text

    @field_validator("admin_token")
    @classmethod
    def _strong(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and _ADMIN_TOKEN.match(token.get_secret_value()) is None:
            raise ValueError("32 to 4096 characters of printable ASCII without spaces are expected")
        return token


def _host(name: str) -> str:
    """The name or address of a host, in the form in which hosts are compared. ``ValueError`` if it is neither."""
    name = name.lower()
    if _HOST_NAME.match(name.removesuffix(".")):
        return name.removesuffix(".")
    try:
        return canonical_address(name[1:-1] if name[0] + name[-1] == "[]" else name)
    except ValueError:
        raise ValueError("names and addresses without ports are expected, like rstored or store.example") from None


def _listed(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]


def load_settings(**given: Any) -> Settings:
    """The settings of the environment, overridden by those ``given``. Raises :class:`InvalidSettings`."""
    # If a misspelt or empty variable were ignored silently, people would believe that it works.
    for name in sorted(name for name in os.environ if name.upper().startswith(_PREFIX)):
        if name.upper().removeprefix(_PREFIX).lower().partition("__")[0] not in Settings.model_fields:
            raise InvalidSettings(f"{name} is not a setting; see docs/operating.md")
        if not os.environ[name].strip():
            raise InvalidSettings(f"{name} is set and empty: give it a value, or unset it")
    for option, value in given.items():
        if isinstance(value, str) and not value.strip():
            raise InvalidSettings(f"--{option.replace('_', '-')} is empty: give it a value, or leave it out")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as errors:
        place, reason = first_failure(errors)
        from_command_line = given.get(place[0]) is not None
        name = f"--{place[0].replace('_', '-')}" if from_command_line else _PREFIX + "__".join(place).upper()
        raise InvalidSettings(f"{name}: {reason}") from None
    except SettingsError:
        raise InvalidSettings(f"{_PREFIX}LIMITS: a JSON object is expected, or a variable for each limit") from None
