"""The schema of ``appliance.db``: an append-only tuple of steps; the version is its length.

Never edit a step that was released; append one. The release before must be able to open and write what a
step leaves (an upgrade that fails goes back and keeps what was written since): a step that only adds is
marked ``@open_to(VERSION)`` with the schema of that release. A change that takes something away takes two
releases: the first stops using it, the next one removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sqlite_utils

from appliance.storage.errors import StorageError

Migration = Callable[[sqlite_utils.Database], None]

_MARK = "oldest_reader"


def open_to(version: int) -> Callable[[Migration], Migration]:
    """Mark a step: programs that know schema ``version`` may open and write what it leaves."""

    def mark(step: Migration) -> Migration:
        setattr(step, _MARK, version)
        return step

    return mark


def oldest_reader(migrations: Sequence[Migration]) -> int:
    """Return the oldest schema whose programs may open a store that has gone through all of ``migrations``.

    A step without a mark can be opened by no program older than itself.
    """
    return max(
        (int(getattr(step, _MARK, number)) for number, step in enumerate(migrations, start=1)), default=0
    )


def versions(database: sqlite_utils.Database) -> tuple[int, int]:
    """Return a store's schema, and the oldest schema whose programs may open it."""
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if not _says_readers(database):
        return version, version
    return version, int(database.execute("SELECT oldest FROM schema_readers").fetchone()[0])


def migrate(database: sqlite_utils.Database, migrations: Sequence[Migration]) -> None:
    """Apply the missing steps, each with its version number in one transaction.

    A store of a newer program is left as it is when it says that this one may open it. Raises StorageError
    when it does not.
    """
    version, oldest = versions(database)
    if version > len(migrations):
        if oldest <= len(migrations):
            return
        raise StorageError(
            f"the store has schema {version}, this program knows up to {len(migrations)}: "
            "it was written by a newer release; use that release, or restore a backup"
        )
    for number, step in enumerate(migrations[version:], start=version + 1):
        database.execute("BEGIN IMMEDIATE")
        try:
            step(database)
            _note_readers(database, number, oldest_reader(migrations[:number]))
            database.execute(f"PRAGMA user_version = {number}")
            database.execute("COMMIT")
        except BaseException:
            if database.conn.in_transaction:
                database.execute("ROLLBACK")
            raise


def _note_readers(database: sqlite_utils.Database, version: int, oldest: int) -> None:
    """Write into the store who may open it, where that is more than programs of its own schema."""
    if oldest == version and not _says_readers(database):
        return
    database.execute(
        "CREATE TABLE IF NOT EXISTS schema_readers (one INTEGER PRIMARY KEY CHECK (one = 1), oldest INTEGER) STRICT"
    )
    database.execute("INSERT OR REPLACE INTO schema_readers VALUES (1, ?)", [oldest])


def _says_readers(database: sqlite_utils.Database) -> bool:
    found = database.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema_readers'")
    return found.fetchone() is not None


def _accounts(database: sqlite_utils.Database) -> None:
    database.execute(
        """
        CREATE TABLE users (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL,
            is_admin INTEGER NOT NULL DEFAULT 0 CHECK (is_admin IN (0, 1)),
            created_at INTEGER NOT NULL
        ) STRICT
        """
    )
    # The key itself is never stored: digest = HMAC-SHA-256(pepper, key), hint = its ends, for people.
    database.execute(
        """
        CREATE TABLE keys (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
            name TEXT NOT NULL,
            digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
            hint TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            expires_at INTEGER
        ) STRICT
        """
    )
    database.execute("CREATE INDEX keys_by_user ON keys (user_id)")


def _jobs(database: sqlite_utils.Database) -> None:
    database.execute(
        """
        CREATE TABLE jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
            progress_done INTEGER NOT NULL DEFAULT 0,
            progress_total INTEGER NOT NULL DEFAULT 0,
            arguments TEXT NOT NULL CHECK (json_valid(arguments)),
            result TEXT CHECK (result IS NULL OR json_valid(result)),
            error TEXT,
            attempts INTEGER NOT NULL DEFAULT 0,
            cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL
        ) STRICT
        """
    )
    database.execute("CREATE INDEX jobs_by_state ON jobs (state, id)")


def _routers(database: sqlite_utils.Database) -> None:
    # user_id NULL: made by the box itself (for an installed pack) or by its bootstrap key.
    database.execute(
        """
        CREATE TABLE routers (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            user_id INTEGER,
            type TEXT NOT NULL,
            load_balancing_strategy TEXT NOT NULL DEFAULT 'shuffle',
            cost_prompt_tokens REAL NOT NULL DEFAULT 0,
            cost_completion_tokens REAL NOT NULL DEFAULT 0,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL
        ) STRICT
        """
    )
    # Names and aliases share one space; place 0 is the name.
    database.execute(
        """
        CREATE TABLE router_names (
            name TEXT PRIMARY KEY,
            router_id INTEGER NOT NULL REFERENCES routers (id) ON DELETE CASCADE,
            place INTEGER NOT NULL,
            UNIQUE (router_id, place)
        ) STRICT, WITHOUT ROWID
        """
    )
    # The upstream's key is sealed (accounts.secret) with the provider's id as context. Parameters are billions.
    database.execute(
        """
        CREATE TABLE providers (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            router_id INTEGER NOT NULL REFERENCES routers (id) ON DELETE CASCADE,
            user_id INTEGER,
            type TEXT NOT NULL,
            url TEXT,
            sealed_key BLOB,
            timeout INTEGER NOT NULL DEFAULT 300,
            model_name TEXT NOT NULL,
            hosting_zone TEXT NOT NULL DEFAULT 'WOR',
            total_params REAL NOT NULL DEFAULT 0,
            active_params REAL NOT NULL DEFAULT 0,
            qos_metric TEXT,
            qos_limit REAL,
            max_context_length INTEGER,
            vector_size INTEGER,
            created_at INTEGER NOT NULL,
            updated_at INTEGER
        ) STRICT
        """
    )
    database.execute(
        "CREATE UNIQUE INDEX providers_once ON providers (router_id, ifnull(url, ''), model_name)"
    )
    # Packs that were given a router once: one that an administrator deleted must not come back by itself.
    database.execute(
        "CREATE TABLE routed_packs (pack TEXT PRIMARY KEY, created_at INTEGER NOT NULL) STRICT, WITHOUT ROWID"
    )


def _organizations_and_roles(database: sqlite_utils.Database) -> None:
    for statement in (
        """
        CREATE TABLE organizations (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL
        ) STRICT
        """,
        """
        CREATE TABLE roles (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL
        ) STRICT
        """,
        """
        CREATE TABLE role_permissions (
            role_id INTEGER NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
            permission TEXT NOT NULL,
            PRIMARY KEY (role_id, permission)
        ) STRICT, WITHOUT ROWID
        """,
        # A value of NULL is unlimited, 0 forbidden. role_default_limits are for routers that a role does not name.
        """
        CREATE TABLE role_limits (
            role_id INTEGER NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
            router_id INTEGER NOT NULL REFERENCES routers (id) ON DELETE CASCADE,
            type TEXT NOT NULL CHECK (type IN ('tpm', 'tpd', 'rpm', 'rpd')),
            value INTEGER CHECK (value >= 0),
            PRIMARY KEY (role_id, router_id, type)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE role_default_limits (
            role_id INTEGER NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
            type TEXT NOT NULL CHECK (type IN ('tpm', 'tpd', 'rpm', 'rpd')),
            value INTEGER CHECK (value >= 0),
            PRIMARY KEY (role_id, type)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX role_limits_by_router ON role_limits (router_id)",
    ):
        database.execute(statement)


def _users_of_roles(database: sqlite_utils.Database) -> None:
    """Rebuild users and keys around roles: administrators of before may do everything, others call models."""
    database.execute("ALTER TABLE keys RENAME TO old_keys")
    database.execute("ALTER TABLE users RENAME TO old_users")
    # The budget is in millionths of the currency: sums of it are exact.
    database.execute(
        """
        CREATE TABLE users (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            email TEXT NOT NULL UNIQUE,
            name TEXT,
            password_hash TEXT,
            role_id INTEGER NOT NULL REFERENCES roles (id),
            organization_id INTEGER REFERENCES organizations (id),
            budget INTEGER CHECK (budget >= 0),
            expires_at INTEGER,
            priority INTEGER NOT NULL DEFAULT 0,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL
        ) STRICT
        """
    )
    database.execute(
        """
        CREATE TABLE keys (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
            kind TEXT NOT NULL DEFAULT 'key' CHECK (kind IN ('key', 'session', 'bootstrap')),
            name TEXT NOT NULL,
            digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
            hint TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            expires_at INTEGER
        ) STRICT
        """
    )
    if database.execute("SELECT 1 FROM old_users").fetchone():
        roles = [administrator_role(database, now=0), _callers_role(database)]
        database.execute(
            "INSERT INTO users (id, email, name, role_id, created_at, updated_at) "
            "SELECT id, CASE WHEN id = (SELECT min(id) FROM old_users WHERE is_admin) THEN 'administrator@localhost' "
            "ELSE 'user-' || id || '@localhost' END, name, iif(is_admin, ?, ?), created_at, created_at FROM old_users",
            roles,
        )
        # Anybody could call a key so: the one of the first boot came first, and was an administrator's.
        database.execute(
            "INSERT INTO keys (id, user_id, kind, name, digest, hint, created_at, expires_at) "
            "SELECT id, user_id, CASE WHEN id = (SELECT min(k.id) FROM old_keys k JOIN old_users u ON u.id = k.user_id "
            "WHERE k.name = 'bootstrap' AND u.is_admin) THEN 'bootstrap' ELSE 'key' END, name, digest, hint, "
            "created_at, expires_at FROM old_keys"
        )
    database.execute("DROP TABLE old_keys")
    database.execute("DROP TABLE old_users")
    database.execute("CREATE INDEX keys_by_user ON keys (user_id)")
    database.execute("CREATE INDEX keys_by_expiry ON keys (expires_at) WHERE expires_at IS NOT NULL")
    database.execute("CREATE INDEX users_by_role ON users (role_id)")
    database.execute("CREATE INDEX users_by_organization ON users (organization_id)")


def administrator_role(database: sqlite_utils.Database, now: int) -> int:
    """Make the role of every permission, without limits on any router, and return its id."""
    cursor = database.execute(
        "INSERT INTO roles (name, created_at, updated_at) VALUES ('administrator', ?, ?)", [now, now]
    )
    role = int(cursor.lastrowid or 0)
    for permission in ("admin", "create_public_collection", "read_metric", "provide_models"):
        database.execute(
            "INSERT INTO role_permissions (role_id, permission) VALUES (?, ?)", [role, permission]
        )
    _unlimited(database, role)
    return role


def _callers_role(database: sqlite_utils.Database) -> int:
    """Make the role of users who call models and administer nothing, as they did before there were limits."""
    cursor = database.execute("INSERT INTO roles (name, created_at, updated_at) VALUES ('user', 0, 0)")
    role = int(cursor.lastrowid or 0)
    _unlimited(database, role)
    return role


def _unlimited(database: sqlite_utils.Database, role: int) -> None:
    for limit in ("tpm", "tpd", "rpm", "rpd"):
        database.execute(
            "INSERT INTO role_default_limits (role_id, type, value) VALUES (?, ?, NULL)", [role, limit]
        )


def _limits_and_logins(database: sqlite_utils.Database) -> None:
    # What counts against limits, by minute, for the windows of a day to survive a restart.
    database.execute(
        """
        CREATE TABLE limit_hits (
            user_id INTEGER NOT NULL,
            router_id INTEGER NOT NULL,
            minute INTEGER NOT NULL,
            requests INTEGER NOT NULL,
            tokens INTEGER NOT NULL,
            PRIMARY KEY (user_id, router_id, minute)
        ) STRICT, WITHOUT ROWID
        """
    )
    database.execute("CREATE INDEX limit_hits_by_minute ON limit_hits (minute)")
    # Failed logins by subject: an address or an e-mail, as an HMAC.
    database.execute(
        """
        CREATE TABLE login_failures (
            subject BLOB PRIMARY KEY,
            failures INTEGER NOT NULL,
            last_at INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID
        """
    )


def _usage(database: sqlite_utils.Database) -> None:
    # Who and what are kept by name too: a record outlives its user, key, router and provider.
    database.execute(
        """
        CREATE TABLE usage (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            created_at INTEGER NOT NULL,
            user_id INTEGER,
            email TEXT,
            key_id INTEGER,
            key_name TEXT,
            router_id INTEGER,
            model TEXT,
            provider_id INTEGER,
            provider_model TEXT,
            endpoint TEXT NOT NULL,
            method TEXT NOT NULL,
            status INTEGER NOT NULL,
            latency_ms INTEGER NOT NULL,
            ttft_ms INTEGER,
            prompt_tokens INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            cost INTEGER NOT NULL,
            kwh_min REAL NOT NULL,
            kwh_max REAL NOT NULL,
            kgco2eq_min REAL NOT NULL,
            kgco2eq_max REAL NOT NULL,
            measured INTEGER NOT NULL DEFAULT 0 CHECK (measured IN (0, 1))
        ) STRICT
        """
    )
    # Holds all that reports of tokens read: a year of them is summed from it alone.
    database.execute(
        "CREATE INDEX usage_by_user ON usage "
        "(user_id, created_at, endpoint, model, prompt_tokens, completion_tokens)"
    )
    database.execute("CREATE INDEX usage_by_time ON usage (created_at)")
    # Sums of older records by quarter of an hour: every time zone's days begin on one.
    database.execute(
        """
        CREATE TABLE usage_quarters (
            quarter INTEGER NOT NULL,
            user_id INTEGER NOT NULL,
            model TEXT NOT NULL,
            endpoint TEXT NOT NULL,
            requests INTEGER NOT NULL,
            failures INTEGER NOT NULL,
            prompt_tokens INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            cost INTEGER NOT NULL,
            kwh_min REAL NOT NULL,
            kwh_max REAL NOT NULL,
            kgco2eq_min REAL NOT NULL,
            kgco2eq_max REAL NOT NULL,
            PRIMARY KEY (user_id, quarter, model, endpoint)
        ) STRICT, WITHOUT ROWID
        """
    )


def _audit(database: sqlite_utils.Database) -> None:
    # Each line's mac is an HMAC over the one before and the line itself: nothing can be changed or left out.
    database.execute(
        """
        CREATE TABLE audit (
            id INTEGER PRIMARY KEY,
            created_at INTEGER NOT NULL,
            actor_id INTEGER,
            actor TEXT NOT NULL,
            source TEXT NOT NULL,
            action TEXT NOT NULL,
            target TEXT NOT NULL,
            details TEXT NOT NULL CHECK (json_valid(details)),
            mac BLOB NOT NULL CHECK (length(mac) = 32)
        ) STRICT
        """
    )
    # Against accidents; against who means it, there are the MACs. REPLACE fires no trigger of deletion.
    for name, event, when in (
        ("audit_keeps", "DELETE", ""),
        ("audit_stands", "UPDATE", ""),
        ("audit_grows", "INSERT", "WHEN NEW.id <> (SELECT coalesce(max(id), 0) + 1 FROM audit)"),
    ):
        database.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON audit {when} "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END"
        )


@open_to(8)
def _batches(database: sqlite_utils.Database) -> None:
    # The last batch of usage records, written with what it took from budgets. A release that knows nothing of it
    # takes budgets without a number: numbers are compared only with those that the running service gave.
    database.execute(
        "CREATE TABLE usage_batches (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL) STRICT"
    )
    database.execute("INSERT INTO usage_batches VALUES (1, 0)")


MIGRATIONS: tuple[Migration, ...] = (
    _accounts,
    _jobs,
    _routers,
    _organizations_and_roles,
    _users_of_roles,
    _limits_and_logins,
    _usage,
    _audit,
    _batches,
)
