"""The settings: one table, read from defaults < TOML file < ``APPLIANCE_*`` environment < flags.

This is the only module that reads the environment for settings. An unknown setting is an error,
wherever it stands: a misspelt limit must not pass for a limit.
"""

from __future__ import annotations

import ipaddress
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from appliance.disk import read_beginning
from appliance.errors import ApplianceError
from appliance.frozen import is_frozen

LARGEST_FILE = 1 << 20
DEFAULT_CONFIG_FILE = Path("/etc/appliance/appliance.toml")
ENVIRONMENT_PREFIX = "APPLIANCE_"
# Where systemd puts LoadCredential=appliance.secret: in the folder CREDENTIALS_DIRECTORY.
SECRET_CREDENTIAL = "appliance.secret"  # noqa: S105 - its name
# Read by other parts of the program, not settings of the service.
OTHER_VARIABLES = frozenset({"CONFIG", "SOURCES_DIR", "EXPORT_PYTHON"})

# Settings that are lists: of networks, and of tags of routes.
NETWORKS = ("provider_networks", "egress_networks", "trusted_proxies")
TAG_LISTS = ("disabled_routers", "hidden_routers")
LISTS = (*NETWORKS, *TAG_LISTS, "tls_names")
# What routes are called together in the OpenAPI document.
TAGS = (
    *("Admin", "Audio", "Auth", "Chat", "Chunks", "Collections", "Completions", "Documents", "Embeddings"),
    *("Me", "Models", "Monitoring", "OCR", "Parse", "Rerank", "Search", "Tokenizer", "Usage"),
)

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=1)]
CountOrAuto = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


# Backups hold a copy of it.
_loaded_file: Path | None = None


class ConfigError(ApplianceError):
    """A setting that is unknown or has a value it cannot have."""


def default_data_dir() -> Path:
    """Return ``var/`` in a source checkout, else the service's state directory."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        return checkout / "var"
    return Path("/var/lib/appliance")


def default_first_boot() -> Literal["key", "code"]:
    """Return how a box gets its first administrator: a release by a set-up code, a clone by a printed key."""
    return "code" if is_frozen() else "key"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting with its default. Sizes are bytes, times seconds. docs/configuration.md explains each."""

    host: str = "127.0.0.1"
    port: Port = 8080
    data_dir: Path = msgspec.field(default_factory=default_data_dir)
    bootstrap_key_file: Path | None = None
    # Without such a file: print the first administrator's key, or a code that makes one (POST /setup).
    first_boot: Literal["key", "code"] = msgspec.field(default_factory=default_first_boot)
    # Kept outside the data directory; default: the systemd credential appliance.secret, where there is one.
    secret_file: Path | None = None

    # HTTPS under the box's own authority, or with the operator's certificate (PEM, whole chain) and key.
    tls: Literal["off", "auto", "files"] = "off"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    # What else the box is called, beside its host name and addresses (names, *.names, addresses).
    tls_names: tuple[str, ...] = ()
    # Serve HTTP in the clear beyond loopback too, where others can read keys and prompts.
    allow_plain_http: bool = False

    # Reverse proxies (CIDR) that are believed about a client's address (X-Forwarded-For); none by default.
    trusted_proxies: tuple[str, ...] = ()

    # Where install.sh puts the releases: releases/, current, and the journal of upgrades.
    releases_dir: Path = Path("/opt/appliance")

    # Public keys (*.pub) that root trusts beside those built into the release.
    trust_dir: Path = Path("/etc/appliance/trust.d")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # 0 = all cores this process may use.
    threads: CountOrAuto = 0
    # 0 = half of the cores, at least 1: the language model needs the rest.
    speech_threads: CountOrAuto = 0

    kv_cache_bytes: Count = 2 << 30
    # Of these bytes, what finished prompts may keep for the next one that begins like them. 0 keeps none.
    prefix_cache_bytes: CountOrAuto = 256 << 20
    generation_profile: Literal["exact", "throughput", "auto"] = "exact"
    # Measure once, when a chat model is loaded for the first time, what suits this machine.
    self_benchmark: bool = True
    generation_queue: Count = 256
    encoding_queue_tokens: Count = 2_000_000
    speech_queue: Count = 64
    speech_deadline: Seconds = 1800.0
    default_temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 1.0

    max_json_bytes: Count = 64 << 20
    max_upload_bytes: Count = 1 << 30
    max_connections: Count = 1024
    request_read_timeout: Seconds = 600.0

    # How often, and after how many seconds, a request is tried again whose providers are all too busy.
    routing_max_retries: CountOrAuto = 3
    routing_retry_countdown: Seconds = 3.0
    # Priorities of users beyond this count as this.
    routing_max_priority: Annotated[int, msgspec.Meta(ge=0, le=10)] = 4
    # The life of the key that a login gives; the longest life of any other (0 = no bound).
    session_seconds: Count = 3600
    key_max_days: CountOrAuto = 0
    # After so many days usage records are kept as sums of quarters of an hour only.
    usage_retention_days: Count = 90
    # Where the box stands, for the carbon of its own models (ISO 3166-1 alpha-3, or WOR for the world).
    hosting_zone: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")] = "WOR"

    # Where backups are made, how many days and weeks keep one, and the public key (age1…) they are encrypted to.
    backup_dir: Path | None = None
    backup_recipient: Annotated[str, msgspec.Meta(pattern=r"^(age1[0-9a-z]{58})?\Z")] = ""
    backup_keep_daily: CountOrAuto = 7
    backup_keep_weekly: CountOrAuto = 4

    # Tags of the routes that are not served, and of those that the OpenAPI document leaves out.
    disabled_routers: tuple[str, ...] = ()
    hidden_routers: tuple[str, ...] = ()
    # What the box calls itself in its OpenAPI document, and as the owner of models that nobody else owns.
    app_title: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] = "appliance"

    # Networks (CIDR) where providers of routers may be: the private ones; loopback only when listed.
    provider_networks: tuple[str, ...] = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
    # Networks (CIDR) that other outbound calls may reach; none by default: nothing leaves the box.
    egress_networks: tuple[str, ...] = ()
    # Authorities (PEM) that outbound calls over https trust beside the system's, such as another box's.
    trusted_authorities: Path | None = None

    def __post_init__(self) -> None:
        """Check what the types cannot. Raises ValueError, which names the setting."""
        for name in TAG_LISTS:
            for tag in getattr(self, name):
                if tag.lower() not in {each.lower() for each in TAGS}:
                    raise ValueError(f"{name}: no routes are tagged {tag!r}; there are {', '.join(TAGS)}")
        for name in NETWORKS:
            for network in getattr(self, name):
                try:
                    ipaddress.ip_network(network)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        if self.tls == "files" and (self.tls_certificate is None or self.tls_key is None):
            raise ValueError('tls = "files" needs tls_certificate and tls_key')
        for name in ("speech_deadline", "request_read_timeout", "routing_retry_countdown"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite")

    @property
    def database_path(self) -> Path:
        """The store of accounts, keys and jobs."""
        return self.data_dir / "appliance.db"

    @property
    def packs_dir(self) -> Path:
        """The installed model packs."""
        return self.data_dir / "packs"

    @property
    def spool_dir(self) -> Path:
        """Uploads on their way; emptied at every start."""
        return self.data_dir / "spool"

    @property
    def secret_path(self) -> Path:
        """The box's secret, from which the key pepper derives."""
        return self.secret_file or self.data_dir / "secret.key"

    @property
    def tls_dir(self) -> Path:
        """What the box made for HTTPS (``tls = "auto"``)."""
        return self.data_dir / "tls"

    @property
    def authority_path(self) -> Path:
        """The box's own authority, key and certificate."""
        return self.tls_dir / "authority.pem"

    @property
    def trust_path(self) -> Path:
        """What the box accepted, revoked and learned of signing keys."""
        return self.data_dir / "trust.json"

    @property
    def tuning_path(self) -> Path:
        """What the self-benchmark of chat models found on this machine."""
        return self.data_dir / "tuning.json"

    @property
    def backups_path(self) -> Path:
        """The folder of the backups."""
        return self.data_dir / (self.backup_dir or "backups")

    @property
    def drill_path(self) -> Path:
        """When a backup was last tried, and how that went."""
        return self.data_dir / "drill.json"

    @property
    def lock_path(self) -> Path:
        """Held exclusively by whoever may write the stores: the service, or one command without it."""
        return self.data_dir / "appliance.lock"

    @property
    def control_path(self) -> Path:
        """The socket on which commands reach the running service."""
        return self.data_dir / "control.sock"


def load_settings(
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    config_file: Path | None = None,
) -> Settings:
    """Combine the four sources; flags whose value is None count as absent.

    The file is ``config_file``, else ``APPLIANCE_CONFIG``, else /etc/appliance/appliance.toml if
    present. Raises ConfigError naming the setting and where it stands.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    path = config_file or (
        Path(environment["APPLIANCE_CONFIG"]) if environment.get("APPLIANCE_CONFIG") else None
    )
    if path is None and DEFAULT_CONFIG_FILE.exists():
        path = DEFAULT_CONFIG_FILE
    if path is not None:
        values.update(_from_file(path))
    global _loaded_file
    _loaded_file = path
    values.update(_from_environment(environment))
    credential = Path(environment.get("CREDENTIALS_DIRECTORY", "")) / SECRET_CREDENTIAL
    if credential.is_absolute() and credential.is_file():
        values.setdefault("secret_file", credential)
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    try:
        settings = msgspec.convert(values, Settings, strict=False, dec_hook=_path)
    except (msgspec.ValidationError, TypeError) as error:
        raise ConfigError(f"settings are not valid: {error}") from error
    return msgspec.structs.replace(settings, data_dir=settings.data_dir.expanduser().absolute())


def loaded_file() -> Path | None:
    """Return the file that the settings of this process were read from last, None without one."""
    return _loaded_file


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"expected a {kind.__name__}")


def _from_file(path: Path) -> dict[str, Any]:
    try:
        data = read_beginning(path, LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise ConfigError(f"the configuration {path} is larger than {LARGEST_FILE} bytes")
        values = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    for name in values:
        if name not in Settings.__struct_fields__:
            raise ConfigError(f"unknown setting {name!r} in {path}")
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        word = variable.removeprefix(ENVIRONMENT_PREFIX)
        if word in OTHER_VARIABLES or not text:
            continue
        name = word.lower()
        if name not in Settings.__struct_fields__ or word != word.upper():
            raise ConfigError(f"unknown setting {variable} in the environment")
        # Lists are written with commas in the environment.
        values[name] = [item.strip() for item in text.split(",")] if name in LISTS else text
    return values
