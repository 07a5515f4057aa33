"""TLS: the certificate of the service, and the certificates that it requires of its clients."""

from __future__ import annotations

import ssl

from rstored.settings import InvalidSettings, Settings


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The context of the settings, or None without TLS. Raises InvalidSettings for unusable files."""
    certificate, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if certificate is None:
        if key is not None or client_ca is not None:
            raise InvalidSettings("--tls-key and --tls-client-ca need --tls-cert")
        return None
    for option, path in (("cert", certificate), ("key", key), ("client-ca", client_ca)):
        _check_readable(option, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A password is always given. Without one, OpenSSL would ask for it on the terminal, and wait.
        context.load_cert_chain(certificate, key, lambda: settings.tls_key_password or "")
    except (ssl.SSLError, ValueError) as error:
        raise InvalidSettings(f"--tls-cert, --tls-key: {_reason(error)}") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError:
            raise InvalidSettings(f"--tls-client-ca: {client_ca} holds no certificate in PEM form") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_readable(option: str, path: str | None) -> None:
    if path is not None:
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise InvalidSettings(f"--tls-{option}: cannot read {path}: {error.strerror}") from None


def _reason(error: ssl.SSLError | ValueError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    return "one of them is not in PEM form, or the key's password (RSTORED_TLS_KEY_PASSWORD) is missing or wrong"
