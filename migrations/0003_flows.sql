-- What happened: flow records as nodes report them. Kept for a while, and bounded; no operator's change,
-- so that no revision speaks of them. `period` is when the period of counting began: 5 minutes, and an
-- hour once it is older than that. `destination` is 0 where nobody has the address that was asked for,
-- `port` and `rule` are -1 where there is none.
CREATE TABLE flows (
    id          INTEGER PRIMARY KEY,
    overlay     INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    observer    INTEGER NOT NULL,
    source      INTEGER NOT NULL,
    destination INTEGER NOT NULL,
    address     TEXT    NOT NULL,
    protocol    INTEGER NOT NULL CHECK (protocol BETWEEN 0 AND 255),
    port        INTEGER NOT NULL CHECK (port BETWEEN -1 AND 65535),
    rule        INTEGER NOT NULL,
    verdict     TEXT    NOT NULL CHECK (verdict IN ('allowed', 'allowed-open', 'audit', 'denied')),
    reason      TEXT    NOT NULL,
    period      INTEGER NOT NULL,
    packets     INTEGER NOT NULL CHECK (packets >= 0),
    bytes       INTEGER NOT NULL CHECK (bytes >= 0),
    first       INTEGER NOT NULL,
    last        INTEGER NOT NULL,
    UNIQUE (source, destination, overlay, observer, protocol, port, rule, verdict, reason, address, period)
) STRICT;
CREATE INDEX flows_by_time ON flows (last);
CREATE INDEX flows_by_observer ON flows (observer, last);

-- How often a rule decided, for as long as it lives.
CREATE TABLE rule_hits (
    rule    INTEGER PRIMARY KEY,
    packets INTEGER NOT NULL CHECK (packets >= 0),
    bytes   INTEGER NOT NULL CHECK (bytes >= 0),
    first   INTEGER NOT NULL,
    last    INTEGER NOT NULL
) STRICT;
