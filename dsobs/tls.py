"""Whom an https address is trusted by, and who dsobs is there."""

import ssl
from functools import cache, lru_cache
from pathlib import Path


@cache
def system_tls() -> ssl.SSLContext:
    """The system's CA certificates: the session's own may be those of the inference server."""
    return ssl.create_default_context()


def tls_of(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """Trust in `ca_file` (None: the system's) and the client's certificate; OSError names a file that can't be used.

    Read anew when a file has changed, so that certificates may rotate.
    """
    files = tuple(
        (path, path.stat().st_mtime_ns, path.stat().st_ino) for path in (ca_file, cert_file, key_file) if path
    )
    return _tls(ca_file, cert_file, key_file, files)


@lru_cache(maxsize=8)
def _tls(
    ca_file: Path | None, cert_file: Path | None, key_file: Path | None, _: tuple[tuple[int, int], ...]
) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
    except ssl.SSLError as error:
        names = ", ".join(str(path) for path in (ca_file, cert_file, key_file) if path)
        raise OSError(f"{names}: {error.reason or error}") from error
    return context
