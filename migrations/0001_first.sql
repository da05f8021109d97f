-- The coordination server's database. Times are whole seconds since 1970 (UTC). Secrets and hashes
-- are 32-byte blobs. Ids are AUTOINCREMENT where nodes or people hold on to them: never reused.

CREATE TABLE meta (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    incarnation TEXT    NOT NULL CHECK (length(incarnation) = 32),
    revision    INTEGER NOT NULL CHECK (revision >= 0)
) STRICT;

CREATE TABLE overlays (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    name      TEXT    NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 63),
    cidr      TEXT    NOT NULL UNIQUE,
    semantics TEXT    NOT NULL CHECK (semantics IN ('default-deny', 'kubernetes')),
    silent    INTEGER NOT NULL CHECK (silent IN (0, 1)),
    created   INTEGER NOT NULL
) STRICT;

CREATE TABLE tokens (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    hash           BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    role           TEXT    NOT NULL CHECK (role IN ('entity', 'sap', 'admin', 'viewer')),
    all_overlays   INTEGER NOT NULL CHECK (all_overlays IN (0, 1)),
    name           TEXT    CHECK (length(name) BETWEEN 1 AND 63),
    namespaces     TEXT    NOT NULL, -- JSON list
    labels         TEXT    NOT NULL, -- JSON list
    ports          TEXT    NOT NULL, -- JSON map
    uses           INTEGER NOT NULL CHECK (uses >= 0),
    used           INTEGER NOT NULL DEFAULT 0 CHECK (used >= 0 AND (uses = 0 OR used <= uses)),
    created        INTEGER NOT NULL,
    expires        INTEGER NOT NULL,
    revoked        INTEGER NOT NULL DEFAULT 0 CHECK (revoked IN (0, 1)),
    ephemeral      INTEGER NOT NULL CHECK (ephemeral IN (0, 1)),
    clear_underlay INTEGER NOT NULL CHECK (clear_underlay IN (0, 1))
) STRICT;

CREATE TABLE token_overlays (
    token   INTEGER NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    overlay INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    PRIMARY KEY (token, overlay)
) STRICT, WITHOUT ROWID;

-- Entities and SaPs share one id space. A deleted node keeps its row, so that rules bound to it dangle
-- instead of finding a later bearer of its name.
CREATE TABLE nodes (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    kind            TEXT    NOT NULL CHECK (kind IN ('entity', 'sap')),
    namespace       TEXT    NOT NULL CHECK (length(namespace) BETWEEN 1 AND 63),
    name            TEXT    NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    ephemeral       INTEGER NOT NULL CHECK (ephemeral IN (0, 1)),
    all_overlays    INTEGER NOT NULL CHECK (all_overlays IN (0, 1)),
    credential_hash BLOB    UNIQUE CHECK (length(credential_hash) = 32),
    joined          INTEGER NOT NULL,
    deleted         INTEGER,
    version         TEXT    NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX nodes_by_name ON nodes (kind, namespace, name) WHERE deleted IS NULL;

CREATE TABLE token_uses (
    token INTEGER NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    node  INTEGER NOT NULL REFERENCES nodes (id),
    at    INTEGER NOT NULL,
    PRIMARY KEY (token, node)
) STRICT, WITHOUT ROWID;

CREATE TABLE node_labels (
    node  INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    key   TEXT    NOT NULL,
    value TEXT    NOT NULL,
    PRIMARY KEY (node, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE node_ports (
    node    INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    name    TEXT    NOT NULL,
    service TEXT    NOT NULL,
    PRIMARY KEY (node, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE node_endpoints (
    node     INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    endpoint TEXT    NOT NULL,
    PRIMARY KEY (node, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE members (
    overlay INTEGER NOT NULL REFERENCES overlays (id),
    node    INTEGER NOT NULL REFERENCES nodes (id),
    address TEXT    NOT NULL,
    PRIMARY KEY (overlay, node),
    UNIQUE (overlay, address)
) STRICT, WITHOUT ROWID;

CREATE TABLE sap_overlays (
    sap     INTEGER NOT NULL REFERENCES nodes (id),
    overlay INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    PRIMARY KEY (sap, overlay)
) STRICT, WITHOUT ROWID;

-- An address rests at least 10 minutes, and until each node in retired_waits acknowledged a table
-- without it. published = 0: the tables without it have not been compiled yet.
CREATE TABLE retired_addresses (
    overlay   INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    address   TEXT    NOT NULL,
    retired   INTEGER NOT NULL,
    published INTEGER NOT NULL DEFAULT 0 CHECK (published IN (0, 1)),
    PRIMARY KEY (overlay, address)
) STRICT, WITHOUT ROWID;

CREATE TABLE retired_waits (
    overlay INTEGER NOT NULL,
    address TEXT    NOT NULL,
    node    INTEGER NOT NULL REFERENCES nodes (id),
    serial  INTEGER NOT NULL,
    PRIMARY KEY (overlay, address, node),
    FOREIGN KEY (overlay, address) REFERENCES retired_addresses (overlay, address) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE links (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    entity INTEGER NOT NULL REFERENCES nodes (id),
    sap    INTEGER NOT NULL REFERENCES nodes (id),
    secret BLOB    NOT NULL CHECK (length(secret) = 32),
    UNIQUE (entity, sap)
) STRICT;

CREATE TABLE rules (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    overlay    INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    action     TEXT    NOT NULL CHECK (action IN ('allow', 'deny')),
    from_text  TEXT    NOT NULL,
    from_node  INTEGER REFERENCES nodes (id),
    to_text    TEXT    NOT NULL,
    to_node    INTEGER REFERENCES nodes (id),
    services   TEXT    NOT NULL, -- JSON list
    both       INTEGER NOT NULL CHECK (both IN (0, 1)),
    path       TEXT,             -- JSON; SaPs by id
    not_after  INTEGER,
    reason     TEXT,
    revision   INTEGER NOT NULL,
    created    INTEGER NOT NULL,
    created_by TEXT    NOT NULL
) STRICT;

CREATE TABLE epochs (
    overlay INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    epoch   INTEGER NOT NULL CHECK (epoch >= 0),
    secret  BLOB    NOT NULL CHECK (length(secret) = 32),
    created INTEGER NOT NULL,
    PRIMARY KEY (overlay, epoch)
) STRICT, WITHOUT ROWID;

-- source = 0: the ring of the destination's half (Kb), whose version is epoch and generation. Else the
-- ring of one pair, whose version is generation alone.
CREATE TABLE key_rings (
    overlay         INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    source          INTEGER NOT NULL,
    destination     INTEGER NOT NULL REFERENCES nodes (id),
    epoch           INTEGER NOT NULL,
    generation      INTEGER NOT NULL,
    next_epoch      INTEGER,
    next_generation INTEGER,
    step            TEXT    NOT NULL CHECK (step IN ('steady', 'adding', 'switching', 'retiring')),
    rotated         INTEGER NOT NULL,
    since_millis    INTEGER NOT NULL,
    deadline_millis INTEGER,
    PRIMARY KEY (overlay, source, destination)
) STRICT, WITHOUT ROWID;

CREATE TABLE node_tables (
    node         INTEGER PRIMARY KEY REFERENCES nodes (id),
    serial       INTEGER NOT NULL,
    hash         BLOB    NOT NULL CHECK (length(hash) = 32),
    acknowledged INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE audit (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    revision INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    actor    TEXT    NOT NULL,
    action   TEXT    NOT NULL,
    before   TEXT    NOT NULL, -- JSON
    after    TEXT    NOT NULL  -- JSON
) STRICT;
