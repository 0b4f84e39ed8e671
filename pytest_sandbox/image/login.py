"""What a registry says about logging in (RFC 9110, 11; docker's token specification), and tokens.

A login is sent to one origin (scheme, host, port): the registry's own for Basic, and for Bearer
the realm that the registry itself names. It never follows a redirect.
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
    from pytest_sandbox.image.transport import Answer

__all__ = ["TOKEN_BYTES", "challenge_of", "realm_of", "token_in", "token_request"]

#: One ``name=value`` of a challenge. Possessive (``++``): no input makes it go back and try again.
_PARAMETER: Final = re.compile(
    r'[\s,]*+([A-Za-z_-]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]++))', re.DOTALL
)
_LONGEST_CHALLENGE: Final = 8 << 10
TOKEN_BYTES: Final = 1 << 20
#: RFC 6750, 2.1: what may stand behind "Bearer"; the length is what servers take in one header.
_TOKEN: Final = re.compile(r"[!-~]{1,65536}\Z")


def challenge_of(headers: Any) -> tuple[str, dict[str, str]]:
    """Return the scheme and parameters of WWW-Authenticate, Bearer before Basic; ``("", {})``
    where neither is offered.
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


def realm_of(parameters: dict[str, str], registry: Address) -> Address:
    """Return where a registry sends logins. Raises ImageError where others could read them.

    Plain HTTP is accepted on this machine, and only from a registry on this machine.
    """
    realm = parse_address(parameters.get("realm", ""))
    if realm.scheme != "https" and not (realm.is_private and is_loopback(registry.host)):
        raise ImageError(
            f"the registry {registry.place} sends logins to {realm.place}, which is not encrypted"
        )
    return realm


def token_request(
    realm: Address, query: dict[str, str], credentials: Credentials | None
) -> tuple[str, Address, dict[str, str], bytes | None]:
    """Return method, address, headers and body of the request for a token."""
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
    address = parse_address(f"{realm.place}{realm.target}{joint}{urlencode(query)}")
    return "GET", address, {"Authorization": credentials.basic} if credentials else {}, None


def token_in(answer: Answer, registry: str) -> str:
    """Return the token of an answer with status 200. Raises ImageError where there is none."""
    status, data = answer.status, answer.document(TOKEN_BYTES)
    try:
        found = json.loads(data)
        token = found.get("token") or found["access_token"]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        token = None
    if status != 200 or not isinstance(token, str) or not _TOKEN.match(token):
        raise ImageError(f"{answer.where} gave no token for {registry} (HTTP status {status})")
    return token
