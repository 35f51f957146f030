"""How long each step of a conversation with an SMTP server may take."""

from msgspec import Struct


class Timeouts(Struct, frozen=True):
    """Seconds. They follow RFC 5321 4.5.3.2, shorter where nothing is lost by giving up early."""

    step: float = 30  # TLS handshake, greeting, EHLO, STARTTLS and AUTH, each
    opening: float = 60  # all of those together: a caller waits for a session to be made
    reset: float = 10  # RSET, over which no server has to think
    command: float = 60  # MAIL, RCPT, each
    begun: float = 10  # MAIL that came with the message before: nothing is lost by asking again
    data: float = 120  # from DATA to 354
    progress: float = 180  # while the server takes nothing of the body
    final: float = (
        600  # from the final dot to its reply: giving up early makes duplicates (4.5.3.2.6)
    )
    quit: float = 2


DEFAULT_TIMEOUTS = Timeouts()
