"""Which mail hosts may be contacted: every spelling of an inward address is refused, before any packet."""

import asyncio
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network

import pytest
import trustme
from aiohappyeyeballs import AddrInfoType

from cbemail.errors import HostNotAllowed, UpstreamTimeout, UpstreamUnavailable
from cbemail.hosts import (
    AccessToken,
    MailHosts,
    Password,
    Security,
    normalise_host,
)
from cbemail.sockets import ACKNOWLEDGE_SECONDS, VANISHED_SECONDS, acknowledging_at_once
from tests.unit.smtp.conftest import settle, until

PUBLIC = "9.9.9.9"
PORTS = (143, 587, 993)


class Names:
    """A resolver that knows these names, and remembers what it was asked."""

    def __init__(self, **known: list[str]) -> None:
        self.known = {name.replace("_", "."): answers for name, answers in known.items()}
        self.asked: list[str] = []

    async def __call__(self, name: str, port: int) -> Sequence[AddrInfoType]:
        self.asked.append(name)
        if name not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [answer(address, port) for address in self.known[name]]


def answer(address: str, port: int) -> AddrInfoType:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)


def hosts(resolve: Names | None = None, *, networks: Sequence[str] = (), **options) -> MailHosts:
    return MailHosts(
        allow_networks=[ip_network(network) for network in networks],
        allow_ports=PORTS,
        resolve=resolve or Names(),
        **options,
    )


def fullwidth(text: str) -> str:
    """The same in the wide forms of East Asian typography, which name the same host (NFKC)."""
    return "".join(
        character if character == "." else chr(ord(character) + 0xFEE0) for character in text
    )


# ---- spellings of addresses that are not on the public Internet (T-1)

INWARD = [
    *("127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f.1", "0x7F000001", "0177.0.0.1", "0"),
    *("0.0.0.0", "0x0", "127.0.0.1.", "127.255.255.254", "017700000001", "[127.0.0.1]"),
    *("[::1]", "::1", "[::]", "::", "::ffff:127.0.0.1", "[::ffff:7f00:1]", "::127.0.0.1"),
    *("0:0:0:0:0:0:0:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1"),
    *("169.254.169.254", "169.254.0.1", "0xa9fea9fe", "2852039166", "169.16689662"),
    *("100.100.100.200", "100.64.0.1", "100.127.255.255", "168.63.129.16", "192.0.0.192"),
    *("192.0.0.8", "192.0.2.1", "198.51.100.1", "203.0.113.9", "198.18.0.1", "192.88.99.1"),
    *("10.0.0.1", "10.255.255.255", "10.1", "172.16.0.1", "172.31.255.255", "192.168.0.1"),
    *("192.168.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("fd00:ec2::254", "fc00::1", "fe80::1", "fe80::1%lo", "fe80::1%25lo", "fec0::1", "ff02::1"),
    *("ff0e::1", "64:ff9b::7f00:1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe"),
    *("64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:5ef5:79fb::1"),
    *("2001:db8::1", "2001:10::1", "3fff::1", "100::1", "5f00::1"),
    *(fullwidth("127.0.0.1"), fullwidth("127") + ".0.0.1", fullwidth("[::1]")),
    *(
        fullwidth("169.254.169.254"),
        fullwidth("0x7f.1"),
        fullwidth("127.0.0.1").replace(".", "\u3002"),
    ),
    *("\u2460\u2461\u2466.0.0.1", "127\u30020\u30020\u30021", "127.0.0.1\u00ad"),
]


@pytest.fixture(scope="module")
def closed() -> MailHosts:
    """Allows nothing beyond the public Internet, and has no resolver to ask."""

    async def resolve(name: str, port: int) -> Sequence[AddrInfoType]:
        raise AssertionError(f"{name} was looked up")

    return MailHosts(allow_ports=PORTS, resolve=resolve)


@pytest.mark.parametrize("host", INWARD)
async def test_an_address_inside_is_refused_however_it_is_spelt(closed: MailHosts, host: str):
    with pytest.raises(HostNotAllowed):
        await closed.open_socket(host, 993, Security.TLS)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", fullwidth("localhost")])
async def test_a_name_of_the_own_machine_is_refused(name: str):
    names = Names(localhost=["::1", "127.0.0.1"])

    with pytest.raises(HostNotAllowed):
        await hosts(names).vet(name, 993, Security.TLS)

    assert names.asked == ["localhost"]


@pytest.mark.parametrize("address", ["10.0.0.7", "::ffff:10.0.0.7", "fd00::7", "fe80::1%lo"])
async def test_a_name_that_resolves_to_an_address_inside_is_refused(address: str):
    with pytest.raises(HostNotAllowed):
        await hosts(Names(mail_example=[address])).vet("mail.example", 993, Security.TLS)


@pytest.mark.parametrize("answers", [[PUBLIC, "127.0.0.1"], ["2620:fe::fe", "fd00::1", PUBLIC]])
async def test_one_address_inside_among_public_ones_refuses_the_name(answers: list[str]):
    with pytest.raises(HostNotAllowed):
        await hosts(Names(mail_example=answers)).vet("mail.example", 993, Security.TLS)


@pytest.mark.parametrize("address", [PUBLIC, "2620:fe::fe", "64:ff9b::909:909"])
async def test_a_public_address_is_admitted(address: str):
    name = await hosts(Names(mail_example=[address])).vet("mail.example", 993, Security.TLS)

    assert name == "mail.example"


async def test_a_refusal_does_not_say_where_the_name_leads():
    with pytest.raises(HostNotAllowed) as refusal:
        await hosts(Names(mail_example=["10.1.2.3"])).vet("mail.example", 993, Security.TLS)

    assert "10.1.2.3" not in refusal.value.detail


# ---- names


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("IMAP.Example.ORG", "imap.example.org"),
        ("imap.example.org.", "imap.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        (fullwidth("imap.example"), "imap.example"),
        ("mail_server", "mail_server"),
        ("1und1.de", "1und1.de"),
        ("[2620:FE::FE]", "2620:fe::fe"),
        ("::ffff:9.9.9.9", "9.9.9.9"),
    ],
)
def test_a_host_has_one_spelling(host: str, name: str):
    assert normalise_host(host) == name


@pytest.mark.parametrize(
    "host",
    [
        *("", ".", "..", "a..b", "-a.example", "a-.example", "a b", "a\tb", "a\r\nb", "a\0b"),
        *("user@host", "host:993", "host/path", "http://host", "a.example#", "a" * 64 + ".example"),
        *("a." * 127 + "example", "x" * 5000, "256.1.1.1", "1.2.3.4.5", "0x", "example.1"),
        *("[::1", "::1]:993", "12345::1", "\ud800.example", "xn--\u00fc.example", "\u200b"),
    ],
)
async def test_what_is_no_host_is_refused(closed: MailHosts, host: str):
    with pytest.raises(HostNotAllowed):
        await closed.vet(host, 993, Security.TLS)


# ---- what the operator allows


async def test_a_network_the_operator_vouches_for_may_be_named_on_any_port_and_without_tls():
    allowed = hosts(Names(mail_internal=["10.1.2.3"]), networks=["10.0.0.0/8"])

    assert await allowed.vet("mail.internal", 14300, Security.NONE) == "mail.internal"


async def test_a_mapped_address_is_judged_as_the_address_it_maps():
    allowed = hosts(Names(mail_internal=["::ffff:10.1.2.3"]), networks=["10.0.0.0/8"])

    assert await allowed.vet("mail.internal", 993, Security.TLS) == "mail.internal"


async def test_a_vouched_for_network_opens_no_other():
    with pytest.raises(HostNotAllowed):
        await hosts(networks=["10.0.0.0/8"]).vet("192.168.0.1", 993, Security.TLS)


async def test_an_interface_of_ours_cannot_be_named_even_in_a_vouched_for_network():
    with pytest.raises(HostNotAllowed):
        await hosts(networks=["fe80::/10"]).vet("fe80::1%lo", 993, Security.TLS)


@pytest.mark.parametrize("port", [22, 80, 5432, 6379, 65535])
async def test_a_public_host_is_reached_on_mail_ports_only(closed: MailHosts, port: int):
    with pytest.raises(HostNotAllowed, match=f"Port {port}"):
        await closed.vet(PUBLIC, port, Security.TLS)


async def test_a_public_host_without_tls_is_refused_and_the_refusal_says_what_to_use():
    with pytest.raises(HostNotAllowed, match="use tls or starttls"):
        await hosts().vet(PUBLIC, 143, Security.NONE)


async def test_the_operator_may_allow_public_hosts_without_tls():
    allowed = hosts(allow_plaintext_login=True)

    assert await allowed.vet(PUBLIC, 143, Security.NONE) == PUBLIC


# ---- the way there


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_a_connection_sends_at_once_and_notices_a_vanished_peer(listener: socket.socket):
    port = listener.getsockname()[1]

    sock = await hosts(networks=["127.0.0.0/8"]).open_socket("127.0.0.1", port, Security.NONE)

    with sock:
        assert sock.getpeername() == ("127.0.0.1", port)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")
        told = {
            name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
            for name in options
        }
    assert told["USER_TIMEOUT"] == VANISHED_SECONDS * 1000
    assert told["KEEPIDLE"] + told["KEEPINTVL"] * told["KEEPCNT"] <= VANISHED_SECONDS


async def test_the_connection_goes_to_the_address_that_was_judged(listener: socket.socket):
    """A name that resolves differently the second time gains nothing: there is no second time."""
    names = Names(rebinding_example=["127.0.0.1"])
    port = listener.getsockname()[1]

    sock = await hosts(names, networks=["127.0.0.1/32"]).open_socket(
        "rebinding.example", port, Security.TLS
    )

    with sock:
        assert sock.getpeername()[0] == "127.0.0.1"
    assert names.asked == ["rebinding.example"]


async def test_the_next_address_is_tried_when_the_first_refuses(listener: socket.socket):
    names = Names(mail_example=["127.0.0.2", "127.0.0.1"])
    port = listener.getsockname()[1]

    sock = await hosts(names, networks=["127.0.0.0/8"]).open_socket(
        "mail.example", port, Security.TLS
    )

    with sock:
        assert sock.getpeername()[0] == "127.0.0.1"


async def test_a_host_that_refuses_the_connection_is_unavailable_and_may_be_tried_later():
    with pytest.raises(UpstreamUnavailable) as failure:
        await hosts(networks=["127.0.0.0/8"]).open_socket("127.0.0.1", closed_port(), Security.TLS)

    assert failure.value.retry_after
    assert failure.value.retryable


async def test_a_name_without_an_address_is_unavailable():
    with pytest.raises(UpstreamUnavailable):
        await hosts().vet("nowhere.example", 993, Security.TLS)


async def test_an_empty_answer_is_unavailable():
    with pytest.raises(UpstreamUnavailable):
        await hosts(Names(empty_example=[])).vet("empty.example", 993, Security.TLS)


async def test_a_resolver_that_does_not_answer_is_a_timeout(monkeypatch: pytest.MonkeyPatch):
    async def silent(name: str, port: int) -> Sequence[AddrInfoType]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr("cbemail.hosts.RESOLVE_SECONDS", 0.01)

    with pytest.raises(UpstreamTimeout):
        await MailHosts(allow_ports=PORTS, resolve=silent).vet("a.example", 993, Security.TLS)


@contextmanager
def black_hole(address: str, port: int = 0) -> Iterator[int]:
    """The port of a listener whose queue is full: it drops what comes after, as a filtered port does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as sockets:
        full = socket.create_server((address, port), family=family, backlog=0)
        sockets.enter_context(full)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket(family))
            waiting.settimeout(0)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()[1]


async def test_a_host_that_does_not_answer_is_a_timeout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cbemail.hosts.CONNECT_SECONDS", 0.05)
    with black_hole("127.0.0.1") as port, pytest.raises(UpstreamTimeout):
        await hosts(networks=["127.0.0.0/8"]).open_socket("127.0.0.1", port, Security.TLS)


@pytest.mark.parametrize("silent", ["127.0.0.2", "::1"])
async def test_an_address_that_never_answers_does_not_hold_up_the_next(
    listener: socket.socket, silent: str
):
    """Nothing but the deadline would end the first attempt: whoever waits for it gets no connection."""
    names = Names(mail_example=[silent, "127.0.0.1"])
    port = listener.getsockname()[1]

    with black_hole(silent, port):
        sock = await hosts(names, networks=["127.0.0.0/8", "::1/128"]).open_socket(
            "mail.example", port, Security.TLS
        )

    with sock:
        assert sock.getpeername()[0] == "127.0.0.1"


async def test_names_that_never_resolve_leave_room_though_nobody_waits_for_them() -> None:
    asked: list[str] = []
    answered = asyncio.Event()

    async def slow(name: str, port: int) -> Sequence[AddrInfoType]:
        asked.append(name)
        await answered.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("9.9.9.9", port))]

    def ask(name: str) -> asyncio.Task[str]:
        return asyncio.create_task(strangers.vet(name, 993, Security.TLS))

    strangers = MailHosts(allow_ports=PORTS, resolve=slow).resolving(at_once=2)
    gone = [ask(f"{number}.example") for number in range(5)]
    await settle()
    for task in gone:
        task.cancel()
    await asyncio.wait(gone)
    next_one = ask("next.example")
    await settle()
    asked_meanwhile = list(asked)

    answered.set()
    await next_one

    assert asked_meanwhile == ["0.example", "1.example"]
    assert asked == [*asked_meanwhile, "next.example"]


async def test_the_system_resolver_is_asked_by_default(listener: socket.socket):
    allowed = MailHosts(
        allow_networks=[ip_network("127.0.0.0/8"), ip_network("::1/128")], allow_ports=PORTS
    )

    assert await allowed.vet("localhost", 143, Security.NONE) == "localhost"


async def test_acknowledgements_stay_prompt_while_a_greeting_is_awaited(listener: socket.socket):
    """The kernel goes back to putting them off whenever it likes, as after each command; this plays its part."""

    def is_prompt() -> bool:
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))

    def put_off() -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    with socket.create_connection(listener.getsockname()) as sock:
        put_off()
        with acknowledging_at_once(sock):
            assert is_prompt()
            put_off()
            await until(is_prompt)
            put_off()
            await until(is_prompt)
        put_off()

        assert not is_prompt()


async def test_a_socket_that_is_closed_while_a_greeting_is_awaited_is_left_alone(
    listener: socket.socket,
):
    loop, told_again = asyncio.get_running_loop(), asyncio.Event()
    defects: list[object] = []
    loop.set_exception_handler(lambda _, context: defects.append(context))
    with socket.create_connection(listener.getsockname()) as sock, acknowledging_at_once(sock):
        sock.close()
        loop.call_later(2 * ACKNOWLEDGE_SECONDS, told_again.set)
        await told_again.wait()

    assert defects == []


# ---- TLS


def test_tls_verifies_the_name_in_the_certificate_and_is_1_2_at_least():
    context = hosts().tls

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert not context.hostname_checks_common_name
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_certificate_authority_of_the_operator_is_trusted_beside_the_public_ones(tmp_path):
    ca_file = tmp_path / "ca.pem"
    trustme.CA(organization_name="Operator").cert_pem.write_to_path(str(ca_file))

    trusted = hosts(ca_file=ca_file).tls.get_ca_certs()

    assert len(trusted) == len(hosts().tls.get_ca_certs()) + 1


# ---- secrets


@pytest.mark.parametrize("secret", [Password("hunter2"), AccessToken("hunter2")])
def test_a_secret_does_not_show_itself(secret: Password | AccessToken):
    assert "hunter2" not in f"{secret!r} {secret}"
