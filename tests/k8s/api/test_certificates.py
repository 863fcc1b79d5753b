"""Certificates of kubeconfig files, against a server that shows one and asks for one; authorities and keys are openssl's."""

import base64
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.errors import ConfigError
from ropewalk.k8s.api.client import ApiAwayError
from ropewalk.k8s.api.kubeconfig import connect
from ropewalk.k8s.profile import K8sProfile

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl")

NAME = "cluster.example"  # in the server's certificate; it is reached as 127.0.0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and keys and certificates that it has signed: of the server, and of a client."""
    path = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=path, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=lab", "-days", "2")
    for name, subject in (("server", NAME), ("client", "me")):
        (path / "names").write_text(f"subjectAltName=DNS:{subject}\n")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}")
        signer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signer)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of a server that talks to nobody without a certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"items": []}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            return  # a caller whose certificate is missing

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.crt"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def as_data(folder: Path, entry: dict[str, str]) -> dict[str, str]:
    return {f"{key}-data": base64.b64encode((folder / name).read_bytes()).decode() for key, name in entry.items()}


def profile(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> K8sProfile:
    content = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "config").write_text(yaml.safe_dump(content))
    return K8sProfile(kubeconfig=str(folder / "config"))


AUTHORITY = {"certificate-authority": "ca.crt"}
CLIENT = {"client-certificate": "client.crt", "client-key": "client.key"}


@pytest.mark.parametrize("in_files", [True, False])
def test_both_sides_prove_who_they_are(folder: Path, server: str, in_files: bool) -> None:
    cluster, user = (AUTHORITY, CLIENT) if in_files else (as_data(folder, AUTHORITY), as_data(folder, CLIENT))
    cluster = {"server": server, "tls-server-name": NAME, **cluster}
    kube = connect(profile(folder, cluster, user))
    assert kube.list("Job") == []
    assert kube.namespace == "default"
    with pytest.raises(ApiAwayError, match="cannot be reached"):
        connect(profile(folder, cluster, {})).list("Job")


def test_a_server_of_another_name_or_authority_is_not_trusted(folder: Path, server: str) -> None:
    with pytest.raises(ApiAwayError, match="certificate"):
        connect(profile(folder, {"server": server, **AUTHORITY}, CLIENT)).list("Job")
    with pytest.raises(ApiAwayError, match="certificate"):
        connect(profile(folder, {"server": server, "tls-server-name": NAME}, CLIENT)).list("Job")
    assert connect(profile(folder, {"server": server, "insecure-skip-tls-verify": True}, CLIENT)).list("Job") == []


def test_a_certificate_that_a_plug_in_prints_is_shown(folder: Path, server: str) -> None:
    printed = "\n".join(
        f'"client{what}Data": "{(folder / name).read_text()}",'.replace("\n", "\\n")
        for what, name in (("Certificate", "client.crt"), ("Key", "client.key"))
    )
    script = folder / "login"
    script.write_text(f'#!/bin/bash\ncat <<\'END\'\n{{"status": {{{printed} "token": "x"}}}}\nEND\n')
    script.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "./login"}}
    assert connect(profile(folder, {"server": server, "tls-server-name": NAME, **AUTHORITY}, user)).list("Job") == []


def test_half_a_certificate_is_refused(folder: Path, server: str) -> None:
    with pytest.raises(ConfigError, match="only one of client-certificate and client-key"):
        connect(profile(folder, {"server": server}, {"client-certificate": "client.crt"}))
