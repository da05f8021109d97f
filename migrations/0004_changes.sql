-- What changed since the server last took nodes, links and keys into memory, so that a change does not
-- make it read all of them again. Triggers write it, so that no writer can forget to, and a change that
-- is rolled back leaves nothing here. id: the node; of a link its entity; of a key ring its destination;
-- `all` (id 0): read everything again.
CREATE TABLE changes (
    kind TEXT    NOT NULL CHECK (kind IN ('node', 'link', 'ring', 'all')),
    id   INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX members_by_node ON members (node);
CREATE INDEX key_rings_by_destination ON key_rings (destination);

CREATE TRIGGER nodes_insert AFTER INSERT ON nodes BEGIN
    INSERT INTO changes SELECT 'node', NEW.id
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.id);
END;
CREATE TRIGGER nodes_update AFTER UPDATE ON nodes BEGIN
    INSERT INTO changes SELECT 'node', NEW.id
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.id);
    INSERT INTO changes SELECT 'node', OLD.id
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.id);
END;
CREATE TRIGGER nodes_delete AFTER DELETE ON nodes BEGIN
    INSERT INTO changes SELECT 'node', OLD.id
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.id);
END;

CREATE TRIGGER node_labels_insert AFTER INSERT ON node_labels BEGIN
    INSERT INTO changes SELECT 'node', NEW.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.node);
END;
CREATE TRIGGER node_labels_update AFTER UPDATE ON node_labels BEGIN
    INSERT INTO changes SELECT 'node', NEW.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.node);
    INSERT INTO changes SELECT 'node', OLD.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.node);
END;
CREATE TRIGGER node_labels_delete AFTER DELETE ON node_labels BEGIN
    INSERT INTO changes SELECT 'node', OLD.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.node);
END;

CREATE TRIGGER node_ports_insert AFTER INSERT ON node_ports BEGIN
    INSERT INTO changes SELECT 'node', NEW.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.node);
END;
CREATE TRIGGER node_ports_update AFTER UPDATE ON node_ports BEGIN
    INSERT INTO changes SELECT 'node', NEW.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.node);
    INSERT INTO changes SELECT 'node', OLD.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.node);
END;
CREATE TRIGGER node_ports_delete AFTER DELETE ON node_ports BEGIN
    INSERT INTO changes SELECT 'node', OLD.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.node);
END;

CREATE TRIGGER node_endpoints_insert AFTER INSERT ON node_endpoints BEGIN
    INSERT INTO changes SELECT 'node', NEW.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.node);
END;
CREATE TRIGGER node_endpoints_update AFTER UPDATE ON node_endpoints BEGIN
    INSERT INTO changes SELECT 'node', NEW.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.node);
    INSERT INTO changes SELECT 'node', OLD.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.node);
END;
CREATE TRIGGER node_endpoints_delete AFTER DELETE ON node_endpoints BEGIN
    INSERT INTO changes SELECT 'node', OLD.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.node);
END;

CREATE TRIGGER members_insert AFTER INSERT ON members BEGIN
    INSERT INTO changes SELECT 'node', NEW.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.node);
END;
CREATE TRIGGER members_update AFTER UPDATE ON members BEGIN
    INSERT INTO changes SELECT 'node', NEW.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.node);
    INSERT INTO changes SELECT 'node', OLD.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.node);
END;
CREATE TRIGGER members_delete AFTER DELETE ON members BEGIN
    INSERT INTO changes SELECT 'node', OLD.node
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.node);
END;

CREATE TRIGGER sap_overlays_insert AFTER INSERT ON sap_overlays BEGIN
    INSERT INTO changes SELECT 'node', NEW.sap
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.sap);
END;
CREATE TRIGGER sap_overlays_update AFTER UPDATE ON sap_overlays BEGIN
    INSERT INTO changes SELECT 'node', NEW.sap
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = NEW.sap);
    INSERT INTO changes SELECT 'node', OLD.sap
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.sap);
END;
CREATE TRIGGER sap_overlays_delete AFTER DELETE ON sap_overlays BEGIN
    INSERT INTO changes SELECT 'node', OLD.sap
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'node' AND id = OLD.sap);
END;

CREATE TRIGGER links_insert AFTER INSERT ON links BEGIN
    INSERT INTO changes SELECT 'link', NEW.entity
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'link' AND id = NEW.entity);
END;
CREATE TRIGGER links_update AFTER UPDATE ON links BEGIN
    INSERT INTO changes SELECT 'link', NEW.entity
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'link' AND id = NEW.entity);
    INSERT INTO changes SELECT 'link', OLD.entity
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'link' AND id = OLD.entity);
END;
CREATE TRIGGER links_delete AFTER DELETE ON links BEGIN
    INSERT INTO changes SELECT 'link', OLD.entity
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'link' AND id = OLD.entity);
END;

CREATE TRIGGER key_rings_insert AFTER INSERT ON key_rings BEGIN
    INSERT INTO changes SELECT 'ring', NEW.destination
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'ring' AND id = NEW.destination);
END;
CREATE TRIGGER key_rings_update AFTER UPDATE ON key_rings BEGIN
    INSERT INTO changes SELECT 'ring', NEW.destination
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'ring' AND id = NEW.destination);
    INSERT INTO changes SELECT 'ring', OLD.destination
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'ring' AND id = OLD.destination);
END;
CREATE TRIGGER key_rings_delete AFTER DELETE ON key_rings BEGIN
    INSERT INTO changes SELECT 'ring', OLD.destination
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'ring' AND id = OLD.destination);
END;

CREATE TRIGGER overlays_insert AFTER INSERT ON overlays BEGIN
    INSERT INTO changes SELECT 'all', 0
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'all' AND id = 0);
END;
CREATE TRIGGER overlays_update AFTER UPDATE ON overlays BEGIN
    INSERT INTO changes SELECT 'all', 0
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'all' AND id = 0);
END;
CREATE TRIGGER overlays_delete AFTER DELETE ON overlays BEGIN
    INSERT INTO changes SELECT 'all', 0
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'all' AND id = 0);
END;
