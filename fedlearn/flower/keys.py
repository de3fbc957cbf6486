"""Keys and certificates for a deployment: one's own authority, TLS, a key for each node."""

import datetime
import ipaddress
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..checks import check, whole
from ..partition.files import place

HERE = ("localhost", "127.0.0.1")


def make_keys(
    folder: str | Path, clients: int, hosts: Sequence[str] = HERE, days: int = 30
) -> Path:
    """Write all that a deployment authenticates with into a folder; nothing there is overwritten.

    ======================  =====================================================================
    ``ca.crt``              the authority, for everybody; its own key is thrown away
    ``server.pem``, ``.key``  the SuperLink's certificate for ``hosts``, and its key
    ``node-0``, ``.pub``, ...  a key for each SuperNode, and what is registered of it
    ``identity-0``, ...     a key for each client, for secure aggregation
    ``directory.json``      the public ones of all clients, for everybody
    ``superexec``           what lets a SuperExec fetch tasks, a secret of each machine
    ======================  =====================================================================

    Keys are readable by their owner alone. Each machine gets its own and ``ca.crt``, no more.

    Args:
        folder: Made if it isn't there.
        clients: Nodes, one for each client.
        hosts: Names and addresses by which nodes reach the SuperLink.
        days: How long the certificates hold.

    Raises:
        FileExistsError: If one of the files is there.
        ValueError: If a number is out of range, or there is no host.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as there:
        ...     sorted(file.name for file in make_keys(there, clients=1).iterdir())
        ['ca.crt', 'directory.json', 'identity-0', 'node-0', 'node-0.pub', 'server.key',
         'server.pem', 'superexec']
    """
    whole("make_keys", "clients", clients, example=3)
    whole("make_keys", "days", days, example=30)
    check("make_keys", "hosts", hosts, bool(hosts), "one or more names or addresses", [*HERE])
    to = place(folder)
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("fedlearn's own authority", ca, None, ca, days)
    _write(to / "ca.crt", root.public_bytes(form.Encoding.PEM))
    own = _certificate(hosts[0], server, root, ca, days, [_name(h) for h in hosts])
    _write(to / "server.pem", own.public_bytes(form.Encoding.PEM))
    _write(to / "server.key", _private(server, form.PrivateFormat.PKCS8))
    book: dict[int, str] = {}
    for k in range(clients):
        node = ec.generate_private_key(ec.SECP384R1())
        _write(to / f"node-{k}", _private(node, form.PrivateFormat.OpenSSH))
        public = node.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
        _write(to / f"node-{k}.pub", public)
        identity = Ed25519PrivateKey.generate()
        _write(to / f"identity-{k}", identity.private_bytes_raw())
        book[k] = identity.public_key().public_bytes_raw().hex()
    _write(to / "directory.json", json.dumps(book).encode())
    _write(to / "superexec", secrets.token_bytes(32))
    return to


def _certificate(
    name: str, key: Any, issuer: Any, signer: Any, days: int, hosts: Sequence[x509.GeneralName] = ()
) -> x509.Certificate:
    """An authority's own if there is no issuer, else a server's."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now, public = datetime.datetime.now(datetime.UTC), key.public_key()
    made = (
        x509.CertificateBuilder(issuer.subject if issuer else subject, subject, public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    of = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    made = made.add_extension(of, critical=False)
    uses = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    signs = {"key_cert_sign": issuer is None, "crl_sign": issuer is None}
    usage = x509.KeyUsage(digital_signature=issuer is not None, **signs, **uses)
    made = made.add_extension(usage, critical=True)
    if issuer:
        made = made.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        made = made.add_extension(purpose, critical=False)
    return made.sign(signer, hashes.SHA256())


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey, kind: form.PrivateFormat) -> bytes:
    return key.private_bytes(form.Encoding.PEM, kind, form.NoEncryption())


def _write(file: Path, content: bytes) -> None:
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(file, new, 0o600), "wb") as f:
        f.write(content)
