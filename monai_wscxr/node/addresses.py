"""Which addresses only this machine can reach, and TLS for the others."""

from __future__ import annotations

import ipaddress
import ssl

from monai_wscxr.errors import InputError


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def server_tls(certificate: str | None, key: str | None, authority: str | None) -> ssl.SSLContext | None:
    """Return the context for connections that come in; None without a certificate.

    Raises:
        InputError: when a file cannot be used.
    """
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        if authority is not None:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"--certificate, --key or --authority cannot be used ({error.strerror or error})") from error
    return context
