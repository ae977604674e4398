-- SPDX-License-Identifier: BSD-3-Clause
-- Schema 2: estimates and charges speak of all resources, not of CPUs alone. The tables are those of schema 1; the first
-- ledgers had one index less.

CREATE INDEX IF NOT EXISTS runs_of_no_period ON runs (account) WHERE period = '';

-- What the queue showed of a waiting job had no nodes and no resources: it is taken as not seen yet, and the next look
-- at the queue confirms it anew, which raises what is set aside where it must, and lowers nothing.
UPDATE liens SET seen_inputs = NULL WHERE state != 'ended';

-- A refusal says what is set aside, and adds that up in the indexes alone.
DROP INDEX liens_open_by_account;
CREATE INDEX liens_open_by_account ON liens (account, user_id, counted, amount_csu, tasks_left, per_task_csu, state)
	WHERE state != 'ended';
DROP INDEX runs_open_by_account;
CREATE INDEX runs_open_by_account ON runs (account, user_id, counted, ledger_csu, lien_csu, state)
	WHERE state = 'running';
