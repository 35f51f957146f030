"""What the operator may write, what is refused, and what is said then."""

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme

from cbemail.settings import Rate, Settings, SettingsError, load_environ

KEY = "kR7x_Qm2vT9-bW4zLp8sYd3nFg6hJc1aUe5iXo0"
OTHER_KEY = "pL0w_Zk8cB3-rN6yHq1fVt5mSj9gDx2eAu7iKo4"


def settings(**environ: str) -> Settings:
    return Settings.from_environ({"SECRET_KEY": KEY} | environ)


# ---- defaults


def test_a_secret_key_is_all_that_must_be_set():
    chosen = settings()

    assert (chosen.host, chosen.port) == ("0.0.0.0", 32212)
    assert chosen.db_path == Path("db/cbemail.duckdb")
    assert chosen.secret_key == (KEY,)
    assert chosen.api_keys == ()
    assert not chosen.require_api_key
    assert chosen.allow_mail_networks == ()
    assert chosen.allow_mail_ports == (25, 143, 465, 587, 993, 2525)
    assert not chosen.allow_plaintext_login
    assert chosen.mail_ca_file is None
    assert chosen.trusted_proxies == (ip_network("127.0.0.1"),)


def test_an_empty_variable_is_one_that_is_not_set():
    assert settings(PORT="", API_KEYS=" ") == settings()


def test_every_default_is_within_its_own_bounds():
    for variable in Settings.variables().values():
        variable.parse(variable.default)


# ---- values


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "65535", 65535),
        ("DB_PATH", "/var/lib/cbemail/db", Path("/var/lib/cbemail/db")),
        ("API_KEYS", "one, two,", ("one", "two")),
        ("ALLOW_PLAINTEXT_LOGIN", "TRUE", True),
        ("ALLOW_PLAINTEXT_LOGIN", "no", False),
        ("DISCOVERY", "false", False),
        ("ISPDB_URL", "https://mail.acme.org/ispdb", "https://mail.acme.org/ispdb/"),
        ("ISPDB_URL", "None", None),
        ("LOG_LEVEL", "debug", "DEBUG"),
        ("LOG_FORMAT", "JSON", "json"),
        ("ALLOW_MAIL_NETWORKS", "10.0.0.0/8,::1", (ip_network("10.0.0.0/8"), ip_network("::1"))),
        ("ALLOW_MAIL_PORTS", "993 , 465", (993, 465)),
        ("IMAP_IDLE_SECONDS", "0", 0),
        ("SESSION_RATE_LIMIT", "10/minute", Rate(10, 60)),
        ("REQUEST_RATE_LIMIT", "1/day", Rate(1, 86_400)),
        ("TRUSTED_PROXIES", "10.0.0.0/8", (ip_network("10.0.0.0/8"),)),
        ("GATE_PIN", "0123", "0123"),
    ],
)
def test_a_value_is_read_as_what_it_means(name: str, text: str, value: object):
    assert getattr(settings(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "takes"),
    [
        ("PORT", "0", "a whole number from 1 to 65535"),
        ("PORT", "65536", "a whole number from 1 to 65535"),
        ("PORT", "80.0", "a whole number"),
        ("PORT", "-1", "a whole number"),
        ("PORT", "\u0663\u0662", "a whole number"),
        ("ACCESS_TOKEN_EXPIRE_MINUTES", "0", "a whole number from 1"),
        ("MAX_MESSAGE_MB", "9" * 5000, "a whole number"),
        ("REQUIRE_API_KEY", "maybe", "true or false"),
        ("LOG_LEVEL", "LOUD", "one of DEBUG, INFO, WARNING, ERROR"),
        ("ISPDB_URL", "http://mail.acme.org/", "the https URL before the domain's name, or none"),
        ("LOG_FORMAT", "xml", "one of text, json"),
        ("ALLOW_MAIL_NETWORKS", "10.0.0.1/8", "addresses or networks"),
        ("ALLOW_MAIL_NETWORKS", "localhost", "addresses or networks"),
        ("ALLOW_MAIL_PORTS", "993,imap", "a whole number"),
        ("TRUSTED_PROXIES", "*", "addresses or networks"),
        ("TRUSTED_PROXIES", "0.0.0.0/0", "addresses or networks of proxies"),
        ("TRUSTED_PROXIES", "10.0.0.1,::/0", "addresses or networks of proxies"),
        ("SESSION_RATE_LIMIT", "0/minute", "a number and a time"),
        ("SESSION_RATE_LIMIT", "10/fortnight", "a number and a time"),
        ("REQUEST_RATE_LIMIT", "1200", "a number and a time"),
        ("REQUEST_RATE_LIMIT", "10000000/second", "a number and a time"),
        ("MAIL_CA_FILE", "/nowhere/ca.pem", "a readable file of CA certificates"),
    ],
)
def test_a_value_that_does_not_parse_is_refused_in_one_line(name: str, text: str, takes: str):
    with pytest.raises(SettingsError) as refusal:
        settings(**{name: text})

    line = str(refusal.value)
    assert line.startswith(f"{name} takes {takes}")
    assert text[:20] in line
    assert "\n" not in line


def test_a_file_of_no_certificates_is_refused(tmp_path: Path):
    (tmp_path / "ca.pem").write_text("not a certificate")

    with pytest.raises(SettingsError, match="MAIL_CA_FILE takes a readable file"):
        settings(MAIL_CA_FILE=str(tmp_path / "ca.pem"))


def test_a_file_of_certificates_is_taken(tmp_path: Path):
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))

    assert settings(MAIL_CA_FILE=str(file)).mail_ca_file == file


# ---- secrets


@pytest.mark.parametrize(
    "key",
    [
        *("", "changeme", "12345678", "changeme" * 5, "Change-Me-" + KEY, "a" * 64, "ab" * 32),
        *("your-secret-key-goes-here-0123456789", f"{KEY},short", KEY[:31]),
    ],
)
def test_a_missing_or_weak_secret_key_is_refused(key: str):
    with pytest.raises(SettingsError, match="SECRET_KEY"):
        settings(SECRET_KEY=key)


def test_several_secret_keys_are_kept_newest_first():
    assert settings(SECRET_KEY=f"{KEY}, {OTHER_KEY}").secret_key == (KEY, OTHER_KEY)


@pytest.mark.parametrize(
    "environ",
    [
        {"SECRET_KEY": KEY[:20]},
        {"API_KEYS": KEY + "\u00e9"},
        {"API_KEYS": f"two words, {KEY}"},
        {"GATE_PIN": KEY[:20]},
    ],
)
def test_a_refused_secret_is_not_shown(environ: dict[str, str]):
    with pytest.raises(SettingsError) as refusal:
        settings(**environ)

    assert KEY[:20] not in str(refusal.value)


@pytest.mark.parametrize("pin", ["123", "1234567890123", "12 34", "\u0661\u0662\u0663\u0664"])
def test_a_pin_is_of_4_to_12_digits(pin: str):
    with pytest.raises(SettingsError, match="GATE_PIN takes 4 to 12 digits"):
        settings(GATE_PIN=pin)


def test_settings_do_not_show_secrets():
    shown = repr(settings(API_KEYS="service-key-0123456789", GATE_PIN="740281953366"))

    assert KEY not in shown
    assert "service-key" not in shown
    assert "740281953366" not in shown
    assert "port=32212" in shown


def test_requiring_an_api_key_takes_an_api_key():
    with pytest.raises(SettingsError, match="API_KEYS"):
        settings(REQUIRE_API_KEY="true")


# ---- .env


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".env").write_text("# comment\nPORT=1\nexport HOST='::1'\nLOG_LEVEL\nA=${HOME}\n")
    monkeypatch.setenv("PORT", "2")

    environ = load_environ(tmp_path)

    assert (environ["PORT"], environ["HOST"], environ["A"]) == ("2", "::1", "${HOME}")
    assert "LOG_LEVEL" not in environ


def test_no_file_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PORT", "2")

    assert load_environ(tmp_path)["PORT"] == "2"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / ".env").write_bytes(b"PORT=\xff\xfe\n")

    with pytest.raises(SettingsError, match="cannot be read"):
        load_environ(tmp_path)


def test_the_example_names_every_variable_with_its_default_and_its_sentence():
    example = Path(__file__).parents[2] / ".env.example"

    written = re.findall(r"((?:^# .*\n)+)^(\w+)=(.*)$", example.read_text(), re.MULTILINE)

    assert {name: (default, unwrapped(comment)) for comment, name, default in written} == {
        name: (variable.default, variable.doc) for name, variable in Settings.variables().items()
    }


def unwrapped(comment: str) -> str:
    return " ".join(line.removeprefix("# ") for line in comment.splitlines())
