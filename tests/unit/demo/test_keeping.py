"""What `cbemail demo --keep` leaves, and finds again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cbemail.demo.keeping import fresh, load, save
from cbemail.settings import SettingsError

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def test_what_was_saved_is_loaded_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    kept = fresh(NOW)

    save(tmp_path, kept)

    [file] = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert load(tmp_path) == kept


def test_a_folder_without_a_demo_has_none(tmp_path: Path) -> None:
    assert load(tmp_path) is None


def test_each_demo_has_secrets_of_its_own() -> None:
    one, other = fresh(NOW), fresh(NOW)

    assert one.account.password != other.account.password
    assert one.secret_key != other.secret_key


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", b"no mail at all"])
def test_a_file_that_is_no_demos_is_told_and_left(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "demo.msgpack"
    file.write_bytes(content)

    with pytest.raises(SettingsError, match=r"demo\.msgpack is damaged"):
        load(tmp_path)

    assert file.read_bytes() == content


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "demo.msgpack").mkdir()

    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load(tmp_path)
    with pytest.raises(SettingsError, match="cannot be written: Is a directory"):
        save(tmp_path, fresh(NOW))
