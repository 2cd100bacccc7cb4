"""Connections prepared for many hosts at once, from one shared configuration."""

from __future__ import annotations

from pathlib import Path

from launcher import connect


def test_a_prepared_connection_opens_while_others_are_being_prepared(tmp_path: Path) -> None:
    """Invoke empties its configuration whenever it merges it anew, as each prepared connection makes it do; fabric's
    open() reads it from another thread."""
    ssh_config = tmp_path / "config"
    ssh_config.write_text("Host node1\n  HostName 127.0.0.1\n")
    connection = connect.prepare("node1", connect.Options(ssh_config=str(ssh_config)))
    merged = connection.config._config
    try:
        connection.config._set(_config={})
        assert connection.authentication.strategy_class is None
    finally:
        connection.config._set(_config=merged)
