"""Authentication challenges (RFC 9110, 11) and tokens (docker's token specification).

Credentials are sent to one origin (scheme, host, port): the registry's for Basic, and for Bearer
that of the realm that the registry itself names. They never follow a redirect.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.transport import Address, is_loopback, parse_address

if TYPE_CHECKING:
    from pytest_sandbox.image.credentials import Credentials
    from pytest_sandbox.image.transport import Response

__all__ = ["TOKEN_BYTES", "parse_challenge", "parse_realm", "parse_token", "token_request"]

#: One ``name=value`` of a challenge. Possessive quantifiers (``++``) prevent backtracking.
_PARAMETER: Final = re.compile(
    r'[\s,]*+([A-Za-z_-]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]++))', re.DOTALL
)
_LONGEST_CHALLENGE: Final = 8 << 10
TOKEN_BYTES: Final = 1 << 20
#: RFC 6750, 2.1, a little wider; the length is what servers accept in a header.
_TOKEN: Final = re.compile(r"[!-~]{1,65536}\Z")


def parse_challenge(headers: Any) -> tuple[str, dict[str, str]]:
    """Return the scheme and parameters of WWW-Authenticate, Bearer before Basic; ``("", {})`` if
    neither is offered.
    """
    offered: dict[str, dict[str, str]] = {}
    listed = hasattr(headers, "getlist")
    name = "WWW-Authenticate"
    for text in headers.getlist(name) if listed else [headers.get(name, "")]:
        scheme, _, rest = text[:_LONGEST_CHALLENGE].strip().partition(" ")
        offered[scheme.lower()] = _parameters(rest)
    return next(((one, offered[one]) for one in ("bearer", "basic") if one in offered), ("", {}))


def _parameters(text: str) -> dict[str, str]:
    found = {}
    at = 0
    while match := _PARAMETER.match(text, at):
        name, quoted, plain = match.groups()
        found[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = match.end()
    return found


def parse_realm(parameters: dict[str, str], registry: Address) -> Address:
    """Return the token server's address. Raises ImageError if it is not encrypted.

    Plain HTTP is accepted on loopback, and only from a registry on loopback.
    """
    realm = parse_address(parameters.get("realm", ""))
    if realm.scheme != "https" and not (realm.is_private and is_loopback(registry.host)):
        raise ImageError(
            f"the registry {registry.origin_text} asks for credentials at {realm.origin_text}, "
            "which is not encrypted"
        )
    return realm


def token_request(
    realm: Address, query: dict[str, str], credentials: Credentials | None
) -> tuple[str, Address, dict[str, str], bytes | None]:
    """Return the method, address, headers and body of a request for a token."""
    if credentials and credentials.identity_token:
        form = {
            **query,
            "grant_type": "refresh_token",
            "refresh_token": credentials.identity_token,
            "client_id": "pytest-sandbox",
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return "POST", realm, headers, urlencode(form).encode()
    joint = "&" if "?" in realm.target else "?"
    address = parse_address(f"{realm.origin_text}{realm.target}{joint}{urlencode(query)}")
    return "GET", address, {"Authorization": credentials.basic} if credentials else {}, None


def parse_token(response: Response, registry: str) -> str:
    """Return the token in a response. Raises ImageError if it has none."""
    status, data = response.status, response.document(TOKEN_BYTES)
    try:
        found = json.loads(data)
        token = found.get("token") or found["access_token"]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        token = None
    if status != 200 or not isinstance(token, str) or not _TOKEN.match(token):
        raise ImageError(f"{response.where} sent no token for {registry} (HTTP status {status})")
    return token
