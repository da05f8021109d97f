-- Where a rule stood in the file that it came by, `FILE:LINE`; NULL for rules that were made one by one.
ALTER TABLE rules ADD COLUMN place TEXT;
