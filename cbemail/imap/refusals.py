"""What NO, BAD, BYE and silence mean to the caller of the service.

A refusal is understood by its response code (RFC 5530), or by its text where it has none. The server's own words go
into the log and nowhere else.
"""

import logging

from cbemail.errors import (
    CbemailError,
    CredentialsRejected,
    FolderExists,
    FolderNotFound,
    FolderProtected,
    InvalidRequest,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.imap.protocol import StatusResponse

log = logging.getLogger(__name__)

# A server may quote what it refuses: of these commands that would be the password.
_SECRET = {"LOGIN", "AUTHENTICATE"}
_UNAVAILABLE = {"UNAVAILABLE", "INUSE", "SERVERBUG", "CORRUPTION"}
_DETAILS = {
    "OVERQUOTA": "The mailbox is full: the mail server refused to store more in it.",
    "NOPERM": "The mail server does not permit this operation.",
    "LIMIT": "The mail server refused the operation because of a limit of its own.",
}


class ServerLimit(UpstreamUnavailable):
    """The server has as many connections of this account as it allows: fewer must do."""


def refusal(command: str, status: StatusResponse) -> CbemailError:
    """The NO to a command."""
    code = _note(command, status)
    text = status.text.casefold()
    missing = (
        ("exist" in text and "not" in text) or "n't exist" in text or "unknown mailbox" in text
    )
    if code in {"NONEXISTENT", "TRYCREATE"} or (not code and missing):
        return FolderNotFound("The folder does not exist on the mail server.")
    if code == "ALREADYEXISTS" or (
        not code and command in {"CREATE", "RENAME"} and "exist" in text
    ):
        return FolderExists("A folder of that name already exists.")
    if code == "CANNOT" and command in {"CREATE", "RENAME"}:  # RFC 5530: the name is what is wrong
        return InvalidRequest.at("#/name", "The mail server does not allow a folder of this name.")
    if code in {"NOPERM", "CANNOT", "HASCHILDREN"} and command in {"CREATE", "RENAME", "DELETE"}:
        return FolderProtected("The mail server does not allow this to be done to that folder.")
    detail = _DETAILS.get(code, f"The mail server refused the {command} command.")
    error = UpstreamUnavailable if code in _UNAVAILABLE else UpstreamError
    return error(detail, protocol="imap", command=command, response_code=code)


def misunderstanding(command: str, status: StatusResponse) -> UpstreamError:
    """The BAD to a command: a defect of ours, or of the server's."""
    log.error("IMAP server called %s bad: %s", command, _loggable(command, status))
    return UpstreamError(
        f"The mail server did not understand the {command} command.",
        protocol="imap",
        command=command,
        response_code="BAD",
    )


def login_refusal(status: StatusResponse) -> CbemailError:
    """The NO to a login is the credentials' fault, unless the server says that it is its own."""
    code = _note("AUTHENTICATE", status)
    if _speaks_of_a_limit(status):
        return _too_many()
    if code in _UNAVAILABLE | {"CONTACTADMIN"}:
        return UpstreamUnavailable(
            "The mail server cannot check the login at the moment.", protocol="imap", retry_after=30
        )
    if code == "PRIVACYREQUIRED":
        return UpstreamError("The IMAP server wants TLS before a login.", protocol="imap")
    return CredentialsRejected("The IMAP server refused the user name or password.")


def farewell(status: StatusResponse) -> UpstreamUnavailable:
    """A BYE: a limit of the server's where it says so, otherwise the connection is simply gone."""
    # Its text is left out: said to a login, it may hold what the login held.
    log.info("IMAP BYE [%s]", status.code.name if status.code is not None else "")
    if _speaks_of_a_limit(status):
        return _too_many()
    return UpstreamUnavailable(
        "The mail server ended the connection.", protocol="imap", retry_after=2
    )


def lost() -> UpstreamUnavailable:
    """The connection is gone, whoever closed it, and nobody said why."""
    return UpstreamUnavailable(
        "The connection to the mail server was lost.", protocol="imap", retry_after=2
    )


def silence() -> UpstreamTimeout:
    """Nothing came, or not all of it, in the time there was."""
    return UpstreamTimeout(
        "The mail server did not answer in time.", protocol="imap", retry_after=10
    )


def _note(command: str, status: StatusResponse) -> str:
    """Log a refusal, and give its response code."""
    code = status.code.name if status.code is not None else ""
    text = _loggable(command, status)
    log.info("IMAP %s refused: %s [%s] %s", command, status.status, code, text)
    return code


def _loggable(command: str, status: StatusResponse) -> str:
    return "…" if command in _SECRET else status.text


def _too_many() -> ServerLimit:
    return ServerLimit(
        "The mail server allows no more connections for this mailbox.",
        protocol="imap",
        retry_after=5,
    )


def _speaks_of_a_limit(status: StatusResponse) -> bool:
    """Whether this means "too many connections": by its code (RFC 9051 section 7.1), or as Gmail, Dovecot and
    Exchange put it."""
    if status.code is not None and status.code.name == "LIMIT":
        return True
    text = status.text.casefold()
    return "connections" in text and ("too many" in text or "maximum" in text or "exceeded" in text)
