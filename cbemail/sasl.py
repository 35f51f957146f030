"""What a client says to log in by SASL, the same to every protocol that takes it (pure)."""

from cbemail.errors import InvalidRequest

# By preference: where both are offered, the one that Google and Microsoft document for their own servers.
BEARER_MECHANISMS = ("XOAUTH2", "OAUTHBEARER")

# A token that is refused is answered by a challenge with the reasons. Until the client has said this to it, the
# server says no more (RFC 7628 section 3.2.3).
LAST_WORDS = {"XOAUTH2": b"", "OAUTHBEARER": b"\x01"}


def plain(username: str, password: str) -> bytes:
    """RFC 4616: no authorisation identity, both values in UTF-8, so that any password can be sent."""
    return b"\0".join(_field(text) for text in ("", username, password))


def bearer(mechanism: str, username: str, token: str, *, host: str, port: int) -> bytes:
    """An access token by one of ``BEARER_MECHANISMS``.

    >>> bearer("XOAUTH2", "joe", "t0", host="imap.example.org", port=993)
    b'user=joe\\x01auth=Bearer t0\\x01\\x01'
    >>> bearer("OAUTHBEARER", "a=b,c", "t0", host="imap.example.org", port=993)
    b'n,a=a=3Db=2Cc,\\x01host=imap.example.org\\x01port=993\\x01auth=Bearer t0\\x01\\x01'
    """
    if mechanism == "XOAUTH2":
        fields = [f"user={username}"]
    else:  # RFC 7628 section 3.1; in the name, the two characters that mean something are escaped (RFC 5801 4)
        name = username.replace("=", "=3D").replace(",", "=2C")
        fields = [f"n,a={name},", f"host={host}", f"port={port}"]
    return b"\x01".join(_field(text) for text in (*fields, f"auth=Bearer {token}", "", ""))


def _field(text: str) -> bytes:
    """A field of a message whose fields end in NUL or ``\\x01``: with one of these in it, it would be two."""
    if "\0" in text or "\x01" in text:
        raise InvalidRequest("A user name or password cannot hold the characters NUL and SOH.")
    return text.encode()
