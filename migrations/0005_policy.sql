-- Policy beyond single rules: names, audit, groups, services, NetworkPolicies, tests, quarantine, the
-- labels of namespaces, and the history that policies are rolled back with.

ALTER TABLE rules ADD COLUMN name TEXT;
ALTER TABLE rules ADD COLUMN audit INTEGER NOT NULL DEFAULT 0 CHECK (audit IN (0, 1));
ALTER TABLE overlays ADD COLUMN audit INTEGER NOT NULL DEFAULT 0 CHECK (audit IN (0, 1));
ALTER TABLE nodes ADD COLUMN quarantined INTEGER NOT NULL DEFAULT 0 CHECK (quarantined IN (0, 1));

CREATE TABLE namespace_labels (
    namespace TEXT NOT NULL CHECK (length(namespace) BETWEEN 1 AND 63),
    key       TEXT NOT NULL,
    value     TEXT NOT NULL,
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;

-- Groups, services and tests of an overlay: `group/NAME`, `service/NAME`, `tests`.
CREATE TABLE policy_items (
    overlay INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    item    TEXT    NOT NULL,
    body    TEXT    NOT NULL, -- JSON
    PRIMARY KEY (overlay, item)
) STRICT, WITHOUT ROWID;

CREATE TABLE network_policies (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    overlay INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    name    TEXT    NOT NULL, -- namespace/name
    body    TEXT    NOT NULL, -- JSON, as Kubernetes writes it
    UNIQUE (overlay, name)
) STRICT;

-- One row per revision that changed an overlay's policy.
CREATE TABLE policy_revisions (
    overlay  INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    revision INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    actor    TEXT    NOT NULL,
    action   TEXT    NOT NULL,
    added    INTEGER NOT NULL,
    removed  INTEGER NOT NULL,
    PRIMARY KEY (overlay, revision)
) STRICT, WITHOUT ROWID;

-- What that revision changed: each item before and after; NULL where there was or is none. The policy as
-- of revision N is the newest one with each item that changed later set to its oldest `before` after N.
CREATE TABLE policy_journal (
    overlay  INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    item     TEXT    NOT NULL,
    before   TEXT,
    after    TEXT,
    PRIMARY KEY (overlay, revision, item),
    FOREIGN KEY (overlay, revision) REFERENCES policy_revisions (overlay, revision) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- A change that is undone at its deadline unless somebody confirms it.
CREATE TABLE confirmations (
    overlay  INTEGER PRIMARY KEY REFERENCES overlays (id) ON DELETE CASCADE,
    revision INTEGER NOT NULL,
    deadline INTEGER NOT NULL,
    actor    TEXT    NOT NULL
) STRICT;
