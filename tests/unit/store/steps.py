"""The least a store is made of, so that the numbers of later steps are free for tests, whatever steps there are."""

from cbemail.store.migrations import Migration, load_migrations

_ALL = {step.name: step for step in load_migrations("duckdb")}
_LEAST = ("sessions_and_sends", "event_log")

FIRST = [Migration(1, "least", "\n".join(_ALL[name].sql for name in _LEAST))]
