# SPDX-License-Identifier: Apache-2.0
"""The cluster's own certificate authority, made by openssl and good for a day."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import yaml

DAYS = "1"
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"openssl {arguments[0]}: {done.stderr.strip()}")


class Authority:
    """Issues certificates into one folder. Every method raises OSError with what openssl said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self._key = folder / "ca.key"
        folder.mkdir()
        _openssl("req", "-x509", "-days", DAYS, *_CURVE, "-subj", "/CN=deviceplugin-e2e", "-keyout", self._key, "-out", self.certificate)
        # Signs service accounts' tokens; the API server wants the public half as well.
        self.account_key = folder / "accounts.key"
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.account_key)

    def issue(self, name: str, group: str = "", addresses: Sequence[str] = ()) -> tuple[Path, Path]:
        """A certificate and its key. name: whom the API server takes its holder for; group: of which group.

        addresses: for a server, the IP addresses that it may have.
        """
        stem = name.replace(":", "-")
        certificate, key = self.folder / f"{stem}.crt", self.folder / f"{stem}.key"
        subject = (f"/O={group}" if group else "") + f"/CN={name}"
        names = ["-addext", "subjectAltName=" + ",".join(f"IP:{address}" for address in addresses)] if addresses else []
        usage = ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth,clientAuth"]
        request: list[str | Path] = ["req", "-x509", "-days", DAYS, *_CURVE, "-CA", self.certificate, "-CAkey", self._key, "-subj", subject]
        _openssl(*request, *usage, *names, "-keyout", key, "-out", certificate)
        return certificate, key

    def kubeconfig(self, server: str, name: str, group: str = "") -> Path:
        """A file with which a program talks to the API server at an address (IP:port) as somebody."""
        certificate, key = self.issue(name, group)
        file = self.folder / f"{certificate.stem}.kubeconfig"
        file.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "e2e", "cluster": {"server": f"https://{server}", "certificate-authority": str(self.certificate)}}],
                    "users": [{"name": name, "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
                    "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
                    "current-context": "e2e",
                }
            )
        )
        return file
