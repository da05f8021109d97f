-- The lives of this database: each restore begins one (meta.incarnation). A node that follows a former life
-- takes tables of this one once an operator accepted that.
CREATE TABLE former_lives (
    incarnation TEXT    PRIMARY KEY CHECK (length(incarnation) = 32),
    accepted    INTEGER NOT NULL CHECK (accepted IN (0, 1))
) STRICT, WITHOUT ROWID;

-- When the backup was made that this life began with; NULL in the first life.
ALTER TABLE meta ADD COLUMN backup_made INTEGER;
