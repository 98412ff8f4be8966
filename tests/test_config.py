"""Settings come from one table, in one order, and unknown ones are errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import ConfigError, Settings, load_settings


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text('host = "10.0.0.1"\nport = 1111\nlog_level = "error"\n')
    environment = {"APPLIANCE_CONFIG": str(file), "APPLIANCE_PORT": "2222", "APPLIANCE_LOG_LEVEL": "debug"}

    settings = load_settings({"port": 3333, "host": None}, environment)

    assert (settings.host, settings.port, settings.log_level) == ("10.0.0.1", 3333, "debug")
    assert settings.max_json_bytes == Settings().max_json_bytes


def test_the_named_file_wins_over_the_one_in_the_environment(tmp_path: Path) -> None:
    named, other = tmp_path / "a.toml", tmp_path / "b.toml"
    named.write_text("port = 1111\n")
    other.write_text("port = 2222\n")

    assert load_settings({}, {"APPLIANCE_CONFIG": str(other)}, config_file=named).port == 1111


@pytest.mark.parametrize(
    "content", ["prot = 8080", "port = 0", "port = 65536", 'port = "x"', "port = ", 'log_level = "loud"']
)
def test_an_unknown_or_impossible_setting_in_the_file_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text(content)

    with pytest.raises(ConfigError):
        load_settings({}, {"APPLIANCE_CONFIG": str(file)})


@pytest.mark.parametrize("variable", ["APPLIANCE_PROT", "APPLIANCE_port"])
def test_an_unknown_setting_in_the_environment_is_an_error_that_names_it(variable: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        load_settings({}, {variable: "8080"})


def test_a_missing_configuration_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_settings({}, {"APPLIANCE_CONFIG": str(tmp_path / "absent.toml")})


@pytest.mark.parametrize("setting", ["egress_networks", "trusted_proxies"])
def test_a_network_that_is_none_is_an_error(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        load_settings({}, {f"APPLIANCE_{setting.upper()}": "10.0.0.0/33"})


def test_lists_are_written_with_commas_in_the_environment() -> None:
    settings = load_settings({}, {"APPLIANCE_EGRESS_NETWORKS": "10.0.0.0/8, fd00::/8"})

    assert settings.egress_networks == ("10.0.0.0/8", "fd00::/8")


def test_the_data_directory_is_absolute() -> None:
    assert load_settings({"data_dir": "somewhere"}, {}).data_dir == Path.cwd() / "somewhere"
