-- Rules and what else a policy holds are among what is read again only when it changed. id: the rule;
-- of NetworkPolicies, groups, services and tests their overlay. Whoever opens the database reads everything
-- first, so nothing that stands here is lost.
DROP TABLE changes;
CREATE TABLE changes (
    kind TEXT    NOT NULL CHECK (kind IN ('node', 'link', 'ring', 'rule', 'policy', 'all')),
    id   INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX network_policies_by_overlay ON network_policies (overlay);

CREATE TRIGGER rules_insert AFTER INSERT ON rules BEGIN
    INSERT INTO changes SELECT 'rule', NEW.id
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'rule' AND id = NEW.id);
END;
CREATE TRIGGER rules_update AFTER UPDATE ON rules BEGIN
    INSERT INTO changes SELECT 'rule', NEW.id
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'rule' AND id = NEW.id);
    INSERT INTO changes SELECT 'rule', OLD.id
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'rule' AND id = OLD.id);
END;
CREATE TRIGGER rules_delete AFTER DELETE ON rules BEGIN
    INSERT INTO changes SELECT 'rule', OLD.id
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'rule' AND id = OLD.id);
END;

CREATE TRIGGER policy_items_insert AFTER INSERT ON policy_items BEGIN
    INSERT INTO changes SELECT 'policy', NEW.overlay
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'policy' AND id = NEW.overlay);
END;
CREATE TRIGGER policy_items_update AFTER UPDATE ON policy_items BEGIN
    INSERT INTO changes SELECT 'policy', NEW.overlay
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'policy' AND id = NEW.overlay);
    INSERT INTO changes SELECT 'policy', OLD.overlay
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'policy' AND id = OLD.overlay);
END;
CREATE TRIGGER policy_items_delete AFTER DELETE ON policy_items BEGIN
    INSERT INTO changes SELECT 'policy', OLD.overlay
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'policy' AND id = OLD.overlay);
END;

CREATE TRIGGER network_policies_insert AFTER INSERT ON network_policies BEGIN
    INSERT INTO changes SELECT 'policy', NEW.overlay
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'policy' AND id = NEW.overlay);
END;
CREATE TRIGGER network_policies_update AFTER UPDATE ON network_policies BEGIN
    INSERT INTO changes SELECT 'policy', NEW.overlay
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'policy' AND id = NEW.overlay);
    INSERT INTO changes SELECT 'policy', OLD.overlay
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'policy' AND id = OLD.overlay);
END;
CREATE TRIGGER network_policies_delete AFTER DELETE ON network_policies BEGIN
    INSERT INTO changes SELECT 'policy', OLD.overlay
    WHERE NOT EXISTS (SELECT 1 FROM changes WHERE kind = 'policy' AND id = OLD.overlay);
END;
