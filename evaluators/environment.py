"""What the environment says of servers: addresses, keys and proxies, checked by name; and which of it is secret.

A key goes to its own service alone: OPENAI_API_KEY to the language model's server, and OPRO_AUDIO_API_KEY to the audio
server. Wherever text leaves the process, in files, logs or messages, `without_secrets` takes them out by their value.
"""

import html
import importlib.util
import json
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field

from evaluators.errors import UserError
from evaluators.server_words import HIDDEN, redacted

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"  # sent where there is no key: servers without keys take any
LEAST_SECRET = (
    8  # characters: shorter values, such as EMPTY, are no keys, and words of ordinary text
)
PLACEHOLDERS = (
    "lm-studio",
    "not-needed",
    "no-key-required",
)  # that servers without keys ask people to set
OPEN_QUERY = ("api-version",)  # parameters of an address that are no secret
_KEYS = ("OPENAI_API_KEY", "OPRO_AUDIO_API_KEY", "HF_TOKEN", "WANDB_API_KEY")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
PROXIES = (*_PROXIES, *map(str.lower, _PROXIES))
_ADDRESSES = ("OPENAI_BASE_URL", "OPRO_AUDIO_BASE_URL", *PROXIES)
_LIKE = "expected an address like http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class Server:
    """A server and what it is sent, checked.

    Attributes:
        url: Its base URL, perhaps with a query.
        key: Sent as a bearer token.
    """

    url: str
    key: str = field(default=NO_KEY, repr=False)


def language_server(base_url: str | None = None) -> Server:
    """The server of the language model: of the flag, else OPENAI_BASE_URL, else OpenAI's; its key is OPENAI_API_KEY.

    Raises:
        UserError: Address, key or a proxy cannot be used; names the flag or variable.
    """
    name = "--lm-base-url" if base_url else "OPENAI_BASE_URL"
    url = checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL, name)
    check_proxies()
    return Server(url, _key("OPENAI_API_KEY"))


def audio_server(base_url: str | None = None) -> Server | None:
    """The audio server: as given, else OPRO_AUDIO_BASE_URL, else OPENAI_BASE_URL; None where none is named.

    Its key is OPRO_AUDIO_API_KEY. Where that is unset it gets OPENAI_API_KEY if it is the same server as the language
    model's of the environment: same scheme, host and port.

    Raises:
        UserError: Address, key or a proxy cannot be used; names the variable.
    """
    named = {"base_url": base_url} | {n: os.environ.get(n) for n in reversed(_ADDRESSES[:2])}
    name = next((n for n, value in named.items() if value), None)
    if name is None:
        return None
    url = checked_url(str(named[name]), name)
    check_proxies()
    key = _key("OPRO_AUDIO_API_KEY")
    if key == NO_KEY and os.environ.get("OPENAI_API_KEY"):
        general = checked_url(os.environ.get("OPENAI_BASE_URL") or OPENAI_URL, "OPENAI_BASE_URL")
        if _origin(url) == _origin(general):
            key = _key("OPENAI_API_KEY")
    return Server(url, key)


def checked_url(url: str, name: str) -> str:
    """An address of a server, without white space around it.

    Args:
        name: The flag or variable that it is of. Flags are written to files: they hold no query.
    Raises:
        UserError: It is none that can be asked, or it holds a user or password, which no server here is sent.
    """
    url = url.strip()
    if "@" in url:
        raise UserError(
            f"{name} holds a user or password, which is not sent and may be stored; leave it out, and put a key into"
            f" {'OPRO_AUDIO_API_KEY' if name == 'OPRO_AUDIO_BASE_URL' else 'OPENAI_API_KEY'}"
        )
    if name.startswith("-") and "?" in url:
        raise UserError(
            f"{name} holds a query (what comes after its ?), which would be written to files; put the whole address"
            " into OPENAI_BASE_URL instead"
        )
    _check_address(url, name, ("http", "https"))
    return url


def check_proxies() -> None:
    """Raises UserError for a proxy of the environment that cannot be used; names the variable."""
    for name in PROXIES:
        url = os.environ.get(name, "").strip()
        if not url:
            continue
        if re.match(r"(?i)socks5h?://", url) and importlib.util.find_spec("socksio") is None:
            raise UserError(
                f"{name} names a SOCKS proxy, for which the package socksio is missing; run pip install socksio, or"
                f" unset {name}"
            )
        url = url if "://" in url else f"http://{url}"
        _check_address(url, name, ("http", "https", "socks5", "socks5h"))


def secrets() -> list[str]:
    """What the environment holds that must not be seen, in every spelling that it may have in a file; longest first."""
    found = [os.environ.get(name, "").strip() for name in _KEYS]
    for name in _ADDRESSES:
        found += _credentials(os.environ.get(name, ""))
    spelt = {s for one in found if is_secret(one) for s in _spellings(one)}
    return sorted(spelt, key=len, reverse=True)


def keys_in(text: str) -> list[str]:
    """Variables of the environment whose key stands in a text."""
    values = {name: os.environ.get(name, "").strip() for name in _KEYS}
    return [name for name, value in values.items() if is_secret(value) and value in text]


def is_secret(value: str) -> bool:
    """Whether a key or password is worth hiding: no placeholder, and not so short that it is a part of other words."""
    return len(value) >= LEAST_SECRET and value not in PLACEHOLDERS


def without_secrets(text: str) -> str:
    """A text with three stars in place of each key and password of the environment."""
    for secret in secrets():
        text = text.replace(secret, HIDDEN)
    return text


def _key(name: str) -> str:
    """A key of the environment, without white space around it.

    Raises:
        UserError: It holds a character that no key has.
    """
    key = os.environ.get(name, "").strip()
    odd = next((ch for ch in key if not ("!" <= ch <= "~") or ch in "\"'`"), None)
    if odd is not None:
        raise UserError(
            f"{name} holds {_character(odd)} at place {key.index(odd) + 1}, which no key has; expected ASCII letters,"
            " digits and signs without blanks and quotes; copy it once more"
        )
    return key or NO_KEY


def _character(ch: str) -> str:
    name = unicodedata.name(ch, "")
    return f"U+{ord(ch):04X}" + (f" ({name})" if name else "")


def _check_address(url: str, name: str, schemes: tuple[str, ...]) -> None:
    """Raises UserError where an address has no scheme of these, no host, a port that is none, or odd characters."""
    wrong = ""
    if not all("!" <= ch <= "~" for ch in url) or "\\" in url:
        wrong = "a blank or a character that is not ASCII"
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        if parts.port == 0:
            raise ValueError
    except ValueError:
        wrong = wrong or "a host or port that is none"
    else:
        if not wrong and parts.scheme not in schemes:
            wrong = f"{parts.scheme or 'no scheme'!r} where one of {', '.join(schemes)} is needed"
        elif not wrong and (not host or ".." in host or parts.fragment):
            wrong = "no host" if not host else "a host or port that is none"
    if wrong:
        shown = redacted(url, secrets())
        raise UserError(f"{name} is {shown[:100]!r}, with {wrong}; {_LIKE}")


def _origin(url: str) -> tuple[str, str | None, int]:
    """(scheme, host, port) of an address."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _credentials(url: str) -> Iterator[str]:
    """User, password and the values of the query of an address; nothing where it is none."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        user, password = parts.username, parts.password
        query = urllib.parse.parse_qsl(parts.query)
    except ValueError:
        return
    yield from (urllib.parse.unquote(one) for one in (user, password) if one)
    yield from (value for name, value in query if name not in OPEN_QUERY)


def _spellings(value: str) -> Iterator[str]:
    """As it is, in an address, in JSON and in HTML."""
    yield value
    yield urllib.parse.quote(value, safe="")
    yield urllib.parse.quote(value)
    yield json.dumps(value)[1:-1]
    yield html.escape(value)
