"""Certificates for tests, made by openssl."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPENSSL = shutil.which("openssl") or ""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: Path
    key: Path


class Authority:
    """A CA of its own, which signs what is asked."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        self._own = self._made(name, "-x509", "-days", "2", "-subj", f"/CN={name}")
        self.certificate = self._own.certificate

    def _made(self, name: str, *words: str) -> Pair:
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        _openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", pair.key, "-out", pair.certificate, *words)
        return pair

    def sign(self, name: str, *, host: str = "IP:127.0.0.1", expired: bool = False) -> Pair:
        """For servers at `host` and for clients; `expired`: since long ago."""
        request = self._made(name, "-subj", f"/CN={name}")
        dates = ("-not_before", "20200101000000Z", "-not_after", "20200201000000Z") if expired else ("-days", "2")
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={host}\nextendedKeyUsage=serverAuth,clientAuth\n")
        signed = self._folder / f"{name}.crt"
        if expired:
            signed = self._backdated(name, request, extensions, dates)
        else:
            _openssl(
                *("x509", "-req", "-in", request.certificate, "-CA", self._own.certificate, "-CAkey", self._own.key),
                *("-CAcreateserial", "-extfile", extensions, "-out", signed, *dates),
            )
        return Pair(signed, request.key)

    def _backdated(self, name: str, request: Pair, extensions: Path, dates: tuple[str, ...]) -> Path:
        """`openssl x509` takes no dates before version 3.4; `openssl ca` always did."""
        folder = self._folder / f"ca-{name}"
        folder.mkdir()
        (folder / "index.txt").touch()
        config = folder / "ca.conf"
        config.write_text(
            f"[ca]\ndefault_ca=own\n[own]\ndatabase={folder}/index.txt\nnew_certs_dir={folder}\ndefault_md=sha256\n"
            "rand_serial=yes\npolicy=any\n[any]\ncommonName=supplied\n"
        )
        begin, end = dates[1][2:], dates[3][2:]
        signed = self._folder / f"{name}.crt"
        _openssl(
            *("ca", "-batch", "-notext", "-config", config, "-cert", self._own.certificate, "-keyfile", self._own.key),
            *("-in", request.certificate, "-out", signed, "-extfile", extensions, "-startdate", begin, "-enddate", end),
        )
        return signed


def _openssl(*words: object) -> None:
    subprocess.run([OPENSSL, *map(str, words)], check=True, capture_output=True)
