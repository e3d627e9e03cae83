"""Login by OpenID Connect: authorization code flow with PKCE, state and nonce (OpenID Connect Core 1.0, 3.1).

The provider is asked over a connection whose certificate is verified. Its answers are checked as section
3.1.3.7 demands. The role of a person follows from a claim of the ID token.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from ingest.config.model import Config, OIDCSettings, is_loopback
from ingest.console.auth.roles import USER_ROLES_BY_WORD, Role
from ingest.errors import IngestError

HTTP_SECONDS: Final = 10.0
MAX_ANSWER_BYTES: Final = 1024**2
FLOW_SECONDS: Final = 600
"""Time that a person has for the login at the provider."""
MAX_FINISHED: Final = 10_000
"""Finished logins that are remembered, so that an answer is used once. Providers take a code once too."""
LEEWAY_SECONDS: Final = 60
"""Difference of the clocks of console and provider that is accepted."""
METADATA_SECONDS: Final = 3600.0
FAILURE_SECONDS: Final = 10.0
"""After a failure the provider is not asked for its metadata again for this long."""
KEYS_SECONDS: Final = 10.0
"""An unknown key is looked for at the provider at most this often."""

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures with a public key. With "none" or a shared key anybody, or each client, could make tokens."""


class OIDCError(IngestError):
    """A login at the provider failed."""


class StrangeAnswerError(OIDCError):
    """An answer that belongs to no login of this browser. Anybody can send one."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A login that has begun. The browser keeps it in a signed cookie.

    Nothing is kept here meanwhile: a flood of begun logins could otherwise push out those of people.

    Attributes:
        state: Sent to the provider, and comes back with the code (CSRF).
        nonce: Sent to the provider, and comes back in the ID token (replay).
        verifier: Kept here; its digest is sent with the request, itself with the code (PKCE).
        redirect_uri: Where the provider sends the browser.
        next_page: Page to show after the login.
        until: End of the flow, in Unix seconds.
    """

    state: str
    nonce: str
    verifier: str
    redirect_uri: str
    next_page: str
    until: int


@dataclass(frozen=True, slots=True)
class Identity:
    """The person who has logged in at the provider."""

    name: str
    role: Role


class OIDCClient:
    """The console as a client of one provider. Its methods block, so call them in threads."""

    def __init__(self, config: Config, settings: OIDCSettings) -> None:
        """Prepare; the provider is asked when somebody logs in."""
        self._settings = settings
        self._verify = _make_context(config, settings)
        self._lock = threading.Lock()
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._signing_key = secrets.token_bytes(32)
        self._metadata: dict[str, Any] = {}
        self._metadata_until = 0.0
        self._metadata_lock = threading.Lock()
        self._failure = ""
        self._failure_until = 0.0
        self._keys: KeySet | None = None
        self._keys_at = 0.0

    def begin(self, redirect_uri: str, next_page: str) -> tuple[str, str]:
        """Begin a login.

        Returns:
            The cookie of the browser, and the address at the provider.

        Raises:
            OIDCError: The provider cannot be asked.
        """
        metadata = self._read_metadata()
        flow = Flow(
            secrets.token_urlsafe(32),
            secrets.token_urlsafe(32),
            secrets.token_urlsafe(64),
            redirect_uri,
            next_page,
            int(time.time()) + FLOW_SECONDS,
        )
        address = prepare_grant_uri(
            metadata["authorization_endpoint"],
            self._settings.client_id,
            "code",
            redirect_uri=redirect_uri,
            scope=" ".join(self._settings.scopes),
            state=flow.state,
            nonce=flow.nonce,
            code_challenge=create_s256_code_challenge(flow.verifier),
            code_challenge_method="S256",
        )
        return self._sign(flow), str(address)

    def finish(self, cookie: str, answer: Mapping[str, str]) -> tuple[Identity, str]:
        """Check the answer that the browser brings from the provider. Each flow can be finished once.

        Args:
            cookie: The cookie of the browser.
            answer: Parameters of the query.

        Returns:
            The person, and the page to show.

        Raises:
            StrangeAnswerError: The answer is not of this browser.
            OIDCError: The provider or its token is not sound.
        """
        flow = self._read_cookie(cookie)
        if flow is None or not self._finish_once(flow):
            raise StrangeAnswerError("the login took too long, or began in another browser; log in again")
        if not secrets.compare_digest(answer.get("state", "").encode(), flow.state.encode()):
            raise StrangeAnswerError("the answer does not belong to this login; log in again")
        # RFC 9207: an answer that names another issuer comes from a mix-up of providers.
        if answer.get("iss", self._settings.issuer) != self._settings.issuer:
            raise OIDCError("the answer comes from another provider; log in again")
        if "code" not in answer:
            error = answer.get("error", "")
            word = error if error.replace("_", "").isalnum() and len(error) < 64 else "no code"
            raise OIDCError(f"the provider refused the login: {word}")
        token = self._fetch_id_token(answer["code"], flow)
        return self._identify(self._check_token(token, flow)), flow.next_page

    def _sign(self, flow: Flow) -> str:
        content = base64.urlsafe_b64encode(json.dumps(astuple(flow)).encode()).decode("ascii")
        return f"{content}.{self._digest(content)}"

    def _digest(self, content: str) -> str:
        return hmac.new(self._signing_key, content.encode(), hashlib.sha256).hexdigest()

    def _read_cookie(self, cookie: str) -> Flow | None:
        """Return the flow of a cookie that this process has signed and that has not ended."""
        content, _, digest = cookie.partition(".")
        if not hmac.compare_digest(digest.encode(), self._digest(content).encode()):
            return None
        flow = Flow(*json.loads(base64.urlsafe_b64decode(content)))
        return flow if time.time() < flow.until else None

    def _finish_once(self, flow: Flow) -> bool:
        with self._lock:
            if flow.state in self._finished:
                return False
            self._finished[flow.state] = None
            while len(self._finished) > MAX_FINISHED:
                self._finished.popitem(last=False)
        return True

    # --- the provider

    def _read_metadata(self) -> dict[str, Any]:
        """Return the provider's metadata (OpenID Connect Discovery 1.0, 4).

        Raises:
            OIDCError: The provider cannot be asked, or its metadata is not sound.
        """
        # One thread asks at a time. A provider that is away must not be waited for again by each login.
        if not self._metadata_lock.acquire(timeout=HTTP_SECONDS):
            raise OIDCError("the provider is slow to answer; log in again")
        try:
            now = time.monotonic()
            if now < self._metadata_until:
                return self._metadata
            if now < self._failure_until:
                raise OIDCError(self._failure)
            try:
                self._metadata = self._fetch_metadata()
            except OIDCError as error:
                self._failure, self._failure_until = str(error), time.monotonic() + FAILURE_SECONDS
                raise
            self._metadata_until = now + METADATA_SECONDS
            return self._metadata
        finally:
            self._metadata_lock.release()

    def _fetch_metadata(self) -> dict[str, Any]:
        issuer = self._settings.issuer
        found = self._fetch("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise OIDCError("the provider's metadata names another issuer; correct [console.oidc] issuer")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            _require_safe_url(str(found.get(name, "")), name)
        return found

    def _fetch_id_token(self, code: str, flow: Flow) -> str:
        settings = self._settings
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": flow.redirect_uri,
            "client_id": settings.client_id,
            "code_verifier": flow.verifier,
        }
        secret = _read_secret(settings.client_secret_file)
        auth = httpx.BasicAuth(settings.client_id, secret) if secret else None
        found = self._fetch("POST", self._read_metadata()["token_endpoint"], data=form, auth=auth)
        token = found.get("id_token")
        if not isinstance(token, str):
            raise OIDCError("the provider sent no ID token; see whether it knows the scope openid")
        return token

    def _fetch(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        """Ask the provider for JSON, within `HTTP_SECONDS` for each step. No redirect is followed.

        Raises:
            OIDCError: There is no sound answer.
        """
        host, until = urlsplit(url).hostname, time.monotonic() + HTTP_SECONDS
        try:
            with (
                httpx.Client(verify=self._verify, timeout=HTTP_SECONDS, trust_env=False) as client,
                client.stream(method, url, headers={"Accept": "application/json"}, **more) as answer,
            ):
                content = b""
                for chunk in answer.iter_bytes():
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        raise OIDCError(f"the provider {host} sends too much")
                    if time.monotonic() > until:
                        raise OIDCError(f"the provider {host} sends too slowly")
                if answer.status_code != 200:
                    raise OIDCError(f"the provider {host} answered {answer.status_code}; see its log")
                found = httpx.Response(200, content=content).json()
        except httpx.HTTPError as error:
            cause = type(error).__name__
            raise OIDCError(f"the provider {host} cannot be asked ({cause}); see network and trust") from None
        except ValueError:
            raise OIDCError(f"the provider {host} sent no JSON") from None
        if not isinstance(found, dict):
            raise OIDCError(f"the provider {host} sent no JSON object")
        return found

    # --- the token

    def _check_token(self, token: str, flow: Flow) -> dict[str, Any]:
        """Return the claims of an ID token.

        Raises:
            OIDCError: Signature or claims are not sound.
        """
        settings = self._settings
        try:
            decoded = self._decode(token)
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                options={
                    "iss": {"essential": True, "value": settings.issuer},
                    "aud": {"essential": True, "value": settings.client_id},
                },
                params={"nonce": flow.nonce, "client_id": settings.client_id},
            )
            claims.validate(now=int(time.time()), leeway=LEEWAY_SECONDS)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise OIDCError(f"the provider's ID token is not sound ({type(error).__name__})") from None
        return dict(decoded.claims)

    def _decode(self, token: str) -> jwt.Token:
        """Verify the signature. If that fails, read the provider's keys anew: it may have changed them."""
        keys = self._read_keys(is_fresh=False)
        try:
            return jwt.decode(token, keys, algorithms=list(ALGORITHMS))
        except (JoseError, ValueError):
            fresh = self._read_keys(is_fresh=True)
            if fresh is keys:
                raise
            return jwt.decode(token, fresh, algorithms=list(ALGORITHMS))

    def _read_keys(self, *, is_fresh: bool) -> KeySet:
        now = time.monotonic()
        if self._keys is not None and (not is_fresh or now - self._keys_at < KEYS_SECONDS):
            return self._keys
        found = self._fetch("GET", self._read_metadata()["jwks_uri"])
        keys: Any = found
        self._keys, self._keys_at = KeySet.import_key_set(keys), now
        return self._keys

    def _identify(self, claims: Mapping[str, Any]) -> Identity:
        """Return the person of sound claims.

        Raises:
            OIDCError: The claims give no role.
        """
        settings = self._settings
        if settings.required_claim and not set(settings.required_values) & read_claim(
            claims, settings.required_claim
        ):
            raise OIDCError(f"the claim {settings.required_claim} does not allow a login here")
        given = read_claim(claims, settings.role_claim)
        roles = [role for word, role in USER_ROLES_BY_WORD.items() if given & set(getattr(settings, word))]
        if not roles:
            raise OIDCError(f"no value of the claim {settings.role_claim} has a role in [console.oidc]")
        name = str(claims.get(settings.name_claim) or claims["sub"])
        printable = "".join(sign for sign in name if sign.isprintable())[:64]
        return Identity(f"oidc:{printable}", max(roles))


def read_claim(claims: Mapping[str, Any], name: str) -> set[str]:
    """Return the values of a claim. Dots lead into objects, as in `realm_access.roles`."""
    value: Any = claims.get(name)
    if value is None:
        value = claims
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    values = value if isinstance(value, list) else [value]
    return {str(each) for each in values if isinstance(each, (str, int, bool))}


def _make_context(config: Config, settings: OIDCSettings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if settings.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for path in config.tls[settings.tls].trusted:
            if path.is_dir():
                for each in sorted(path.iterdir()):
                    with contextlib.suppress(ssl.SSLError):
                        context.load_verify_locations(each)
            else:
                context.load_verify_locations(path)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _require_safe_url(url: str, name: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise OIDCError(f"the provider's {name} is not https")


def _read_secret(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        raise OIDCError("[console.oidc] client_secret_file cannot be read; let this user read it") from None
