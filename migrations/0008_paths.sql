-- Paths: those that were set for single pairs, the round trips by which the others are chosen, and how far
-- SaPs are drained.

-- Walked from the lower id to the higher one. `hops`: JSON; SaPs by id.
CREATE TABLE pair_paths (
    overlay INTEGER NOT NULL REFERENCES overlays (id) ON DELETE CASCADE,
    low     INTEGER NOT NULL REFERENCES nodes (id),
    high    INTEGER NOT NULL REFERENCES nodes (id),
    hops    TEXT    NOT NULL,
    PRIMARY KEY (overlay, low, high),
    CHECK (low < high)
) STRICT, WITHOUT ROWID;

-- As they are held (`policy::Leg`): seldom written, so that tables seldom change.
CREATE TABLE round_trips (
    node   INTEGER NOT NULL REFERENCES nodes (id),
    sap    INTEGER NOT NULL REFERENCES nodes (id),
    micros INTEGER NOT NULL CHECK (micros > 0),
    PRIMARY KEY (node, sap)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER round_trips_insert AFTER INSERT ON round_trips BEGIN
    INSERT INTO changes SELECT 'node', NEW.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.node);
END;
CREATE TRIGGER round_trips_update AFTER UPDATE ON round_trips BEGIN
    INSERT INTO changes SELECT 'node', NEW.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.node);
END;
CREATE TRIGGER round_trips_delete AFTER DELETE ON round_trips BEGIN
    INSERT INTO changes SELECT 'node', OLD.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.node);
END;

-- 0: it carries traffic; 1: nothing new goes over it; 2: nothing is sent to it.
ALTER TABLE nodes ADD COLUMN drain INTEGER NOT NULL DEFAULT 0 CHECK (drain IN (0, 1, 2));
