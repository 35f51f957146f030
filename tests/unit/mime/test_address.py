import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cbemail.mime import address as address_module
from cbemail.mime import limits
from cbemail.mime.address import (
    Address,
    check_address,
    envelope_address,
    needs_smtputf8,
    parse_address,
    read_addresses,
)

# ---- strict


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("a@b.c", None, "a@b.c"),
        ("<a@b.c>", None, "a@b.c"),
        ("Ann Lee <a@b.c>", "Ann Lee", "a@b.c"),
        ('"Lee, Ann (Sales)" <a@b.c>', "Lee, Ann (Sales)", "a@b.c"),
        (r'"say \"hi\"" <a@b.c>', 'say "hi"', "a@b.c"),
        ("Jörg <jörg@müller.de>", "Jörg", "jörg@müller.de"),
        ("a@MÜLLER.de", None, "a@müller.de"),
        ("first.last+tag@sub.example.com", None, "first.last+tag@sub.example.com"),
        ("=?utf-8?q?x?= <a@b.c>", "=?utf-8?q?x?=", "a@b.c"),
    ],
)
def test_an_address_is_read_as_it_was_meant(text: str, name: str | None, address: str):
    assert parse_address(text) == Address(name, address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "@b.c",
        "a@",
        "a@@b.c",
        "a@b@c.d",
        "c@d.co\tx",
        "c@d.co\n",
        "c@d.co,e@f.co",
        "c@d.co; e@f.co",
        "c@d.co> NOTIFY=NEVER",
        "c@d.co <",
        "<c@d.co>\r\nRCPT TO:<x@y.z>",
        "A\r\nBcc: x@y.z <c@d.co>",
        "A\0 <c@d.co>",
        "A\u2028 <c@d.co>",
        '"a b"@x.y',
        "a@[127.0.0.1]",
        "a@127.0.0.1",
        "<@a,@b:c@d.e>",
        "g: a@b.c, c@d.e;",
        "a@evil.co <b@good.co>",
        "alice@example.org)bob@good.co",
        "Lee, Ann <a@b.c>",
        "A <a@b.c> <d@e.f>",
        ".a@b.c",
        "a.@b.c",
        "a..b@c.d",
        "a@.b",
        "a@b..c",
        "a@-b.c",
        "a@b_c.d",
        "a@b.c.",
        "a\u202eb@c.d",
        "a b@c.d",
        "a@b\u00ad\u200b.c\x7f",
        "a" * 65 + "@b.c",
        "ö" * 33 + "@b.c",
        "a@" + "b" * 64 + ".c",
        "a@" + "b." * 130 + "c",
        "a@xn--\u00fc.de",
        "a@\ud800.de",
    ],
)
def test_what_could_be_read_in_two_ways_is_no_address(text: str):
    with pytest.raises(ValueError, match=r"^[A-Z].*\.$"):
        parse_address(text)


def test_two_addresses_in_one_are_told_apart_from_a_wrong_domain():
    with pytest.raises(ValueError, match="exactly one @"):
        parse_address("a@b.c,d@e.f")
    with pytest.raises(ValueError, match="domain"):
        parse_address("a@b_c.d")


def test_an_address_given_as_an_object_is_held_to_the_same_rules():
    with pytest.raises(ValueError, match="display name"):
        check_address(Address("A\r\nBcc: x@y.z", "a@b.c"))
    with pytest.raises(ValueError, match="display name"):
        check_address(Address("A" * (limits.DISPLAY_NAME + 1), "a@b.c"))
    with pytest.raises(ValueError, match="Before the @"):
        check_address(Address("A", "a,b@c.d"))

    assert check_address(Address(" ", "a@b.c")) == Address(None, "a@b.c")


@given(st.text("ab1.-+_", min_size=1, max_size=70), st.text("ab1.-xnN", min_size=1, max_size=300))
@example("a" * 64, "b" * 63 + ".c")
@example("a", "b.1")
@example("a", "1")
@example("a", "xn--a.de")
@example("a" * 60, ".".join(["b" * 60] * 3) + ".cccccccccc")
@example("a" * 60, ".".join(["b" * 60] * 3) + ".ccccccccccc")
def test_a_short_cut_leads_where_the_rules_do(local: str, domain: str):
    def read() -> Address | None:
        try:
            return parse_address(f"{local}@{domain}")
        except ValueError:
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(address_module, "_ORDINARY", re.compile("nothing"))
        by_the_rules = read()

    assert read() == by_the_rules


def test_the_whole_address_has_at_most_254_octets():
    longest = "a" * 60 + "@" + ".".join(["b" * 60] * 3) + ".cccccccccc"
    assert len(longest) == 254

    assert parse_address(longest).address == longest
    with pytest.raises(ValueError, match="254"):
        parse_address("a" + longest)


def test_an_international_domain_goes_into_the_envelope_as_a_labels():
    assert envelope_address("jörg@müller.de") == "jörg@xn--mller-kva.de"
    assert envelope_address("A@Example.COM") == "A@Example.COM"
    with pytest.raises(ValueError, match="internationalised"):
        envelope_address("a@ü\u2028.de")


def test_only_a_non_ascii_local_part_needs_smtputf8():
    assert needs_smtputf8("jörg@example.com")
    assert not needs_smtputf8("jorg@müller.de")


# ---- tolerant


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", []),
        (b" ,, ;", []),
        (b"a@b.c", [(None, "a@b.c")]),
        (b'Ann Lee <a@b.c>, "Q, x" <q@x.y>', [("Ann Lee", "a@b.c"), ("Q, x", "q@x.y")]),
        (b"a@b.c (Ann (x) Lee)", [("Ann (x) Lee", "a@b.c")]),
        (b"(Ann) <a@b.c>, b@c.d", [("Ann", "a@b.c"), (None, "b@c.d")]),
        (b"Ann (home) <a@b.c>", [("Ann", "a@b.c")]),
        (b"undisclosed-recipients:;", []),
        (b'Team: a@b.c, "X" <x@y.z>;, z@z.z', [(None, "a@b.c"), ("X", "x@y.z"), (None, "z@z.z")]),
        (b"a@b.c; d@e.f", [(None, "a@b.c"), (None, "d@e.f")]),
        (b"=?utf-8?b?SsO2cmc=?= <j@b.c>", [("Jörg", "j@b.c")]),
        (b'"=?utf-8?q?a?=\r\n =?utf-8?q?b?=" <x@y.z>', [("ab", "x@y.z")]),
        (b"J\xc3\xb6rg <j@b.c>, J\xf6rg <k@b.c>", [("Jörg", "j@b.c"), ("Jörg", "k@b.c")]),
        (b"root", [(None, "root")]),
        (b"Ann Lee", [("Ann Lee", "")]),
        (b"Ann <>", [("Ann", "")]),
        (b"a@b.c <>", [(None, "a@b.c")]),
        (b"Ann a@b.c", [("Ann", "a@b.c")]),
        (b"a @ b.c", [(None, "a@b.c")]),
        (b"<@r.x,@s.x:a@b.c>", [(None, "a@b.c")]),
        (b'"a b"@x.y', [(None, '"a b"@x.y')]),
        (b'Ann <"a b"@x.y>', [("Ann", '"a b"@x.y')]),
        (b"a@[IPv6:::1], b@[1.2.3.4]", [(None, "a@[IPv6:::1]"), (None, "b@[1.2.3.4]")]),
        (b'"Ann <a@b.c>, x@y.z', [("Ann", "a@b.c"), (None, "x@y.z")]),
        (b"(foo a@b.c, d@e.f", [("foo", "a@b.c"), (None, "d@e.f")]),
        (b"Ann <a@b.c", [("Ann", "a@b.c")]),
        (b"<<a@b.c>>", [(None, "a@b.c")]),
        (b'"Ann \\"A\\" Lee" <a@b.c>', [('Ann "A" Lee', "a@b.c")]),
        (b"Ann Lee\r\n <a@b.c>", [("Ann Lee", "a@b.c")]),
        (b"a@b.c\0\r\nBcc: x", [(None, "x")]),
    ],
)
def test_received_addresses_are_made_out(raw: bytes, expected: list[tuple[str | None, str]]):
    assert [(each.name, each.address) for each in read_addresses(raw)] == expected


def test_the_address_in_angle_brackets_wins_over_one_in_the_name():
    assert read_addresses(b"a@evil.co <b@good.co>") == [Address("a@evil.co", "b@good.co")]


def test_a_hundred_thousand_addresses_are_cut_short():
    assert len(read_addresses(b"a@b.c, " * 100_000)) == limits.ADDRESSES


@pytest.mark.parametrize(
    "unit", [b'"', b"(", b"<", b'"\\', b"(\\", b"[", b"a@b ", b"=?a?b?", b":", b"\\", b"<a>"]
)
def test_a_long_run_of_signs_is_read_to_its_end(unit: bytes):
    """The standard library takes quadratic time or recurses on these; the suite would be seen to hang."""
    addresses = read_addresses(unit * (limits.FIELD // len(unit)))

    assert len(addresses) <= 1
