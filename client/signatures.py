"""The server's signature on a request, checked before anything else is done with it.

1. A client with an identity (deployed, or in a simulation that has them) acts on requests only that a server of its federation signed.
2. The root, the federation and the server's name are the client's own; no message replaces them. A simulated client takes them from the run's
   folder, which is its operator's.
3. A client without an identity has no root to check by. It takes part in clear rounds only, and whoever reaches it may ask.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from client.credentials import IDENTITIES, Credentials, credentials_of
from client.settings import DeployedClient, SimulatedClient, identify
from fedsec.flower.signed import Trust, verify_request
from fedsec.identity.verify import VerifiedPeer, verify_peer
from fedsec.signing import VerificationCache, verify_signature

_shared = VerificationCache(1 << 12)


def check_signature(message: Message, context: Context) -> None:
    """Refuse a request that the server did not sign, where this client can tell.

    Raises:
        SignatureError: no signature, or one for something else.
        CertificateError: not the server's certificate, or a revoked one; or the revocation list has ended.
        ConfigError: this node does not know who it is.
        StorageError: its identity cannot be read.
    """
    client = identify(context.node_config)
    credentials = _credentials(client, message)
    if credentials is None:
        return
    name = client.server if isinstance(client, DeployedClient) else None
    trust = Trust(
        root_der=credentials.root_der,
        federation=credentials.federation,
        server_name=name,
        revoked=credentials.revoked,
        accepted=credentials.accepted,
    )
    if isinstance(client, DeployedClient):
        verify_request(
            message, trust, node_id=context.node_id, flower_run_id=context.run_id, now=datetime.now(UTC), verify=verify_signature
        )
        return
    now = datetime.now(UTC).replace(second=0, microsecond=0)  # to the minute: simulated clients then share what was verified
    verify_request(message, trust, node_id=context.node_id, flower_run_id=context.run_id, now=now, verify=_shared, check_peer=_remembered)


def _credentials(client: SimulatedClient | DeployedClient, message: Message) -> Credentials | None:
    if isinstance(client, DeployedClient):
        return credentials_of(client, "") if client.identity is not None else None
    config = message.content.config_records.get("config") if message.has_content() else None
    folder = config.get("simulation_dir") if config is not None else None
    if not isinstance(folder, str) or not folder or not (Path(folder).parent / IDENTITIES).is_dir():
        return None
    return credentials_of(client, folder)


@lru_cache(maxsize=64)
def _remembered(certificate_der: bytes, **expected: Any) -> VerifiedPeer:
    return verify_peer(certificate_der, **expected)
