-- SPDX-License-Identifier: BSD-3-Clause
-- The ledger. `entries` is the record: append-only, all of it, in order. The other tables are what the entries amount
-- to now, kept in the same transactions so that a submission need not add anything up. Times: unix seconds unless _us.

CREATE TABLE meta (
	key TEXT PRIMARY KEY,
	value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE entries (
	seq INTEGER PRIMARY KEY AUTOINCREMENT,
	at_us INTEGER NOT NULL,
	kind TEXT NOT NULL CHECK (kind IN (
		'lien', 'raise', 'lower', 'confirm', 'move', 'lien_charged', 'lien_voided', 'lien_expired',
		'start', 'charge', 'restated', 'delivered', 'funds', 'allow', 'note')),
	lien_id TEXT,
	job_id INTEGER,
	submit_time INTEGER,
	restart_count INTEGER,
	account TEXT NOT NULL,
	user_id INTEGER NOT NULL,
	amount_csu INTEGER NOT NULL,	-- change of what counts against funds
	actor TEXT NOT NULL,
	reason TEXT NOT NULL,
	inputs TEXT			-- JSON: what the number came from
);
CREATE INDEX entries_by_job ON entries (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX entries_by_lien ON entries (lien_id) WHERE lien_id IS NOT NULL;
CREATE INDEX entries_by_account ON entries (account, seq);
-- A lien ends once.
CREATE UNIQUE INDEX entries_end_once ON entries (lien_id)
	WHERE kind IN ('lien_charged', 'lien_voided', 'lien_expired');
CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;

-- state:  unconfirmed --seen--> confirmed --last task charged / voided / expired--> ended
CREATE TABLE liens (
	lien_id TEXT PRIMARY KEY,
	state TEXT NOT NULL CHECK (state IN ('unconfirmed', 'confirmed', 'ended')),
	end_kind TEXT CHECK (end_kind IN ('lien_charged', 'lien_voided', 'lien_expired')),
	origin TEXT NOT NULL CHECK (origin IN ('submit', 'requeue', 'update', 'rebuilt', 'found', 'grandfathered')),
	counted INTEGER NOT NULL,	-- 0: shown, but does not count against funds
	account TEXT NOT NULL,
	user_id INTEGER NOT NULL,
	job_id INTEGER,			-- NULL until bound
	submit_time INTEGER,		-- NULL until known
	restart_count INTEGER NOT NULL,
	tasks_left INTEGER NOT NULL CHECK (tasks_left >= 0),
	per_task_csu INTEGER NOT NULL CHECK (per_task_csu >= 0),
	proposed_csu INTEGER,		-- cost per task of an update that Slurm has not been seen to make
	proposed_us INTEGER,
	proposed_inputs TEXT,
	amount_csu INTEGER NOT NULL CHECK (amount_csu >= 0),
	supersedes TEXT,		-- an update to another account: the lien that ends when this one is confirmed
	user_name TEXT NOT NULL,
	name TEXT NOT NULL,
	inputs TEXT NOT NULL,
	seen_inputs TEXT,		-- what the queue showed when it was confirmed
	created_us INTEGER NOT NULL,
	confirmed_us INTEGER,
	ended_us INTEGER,
	missed INTEGER NOT NULL DEFAULT 0,	-- complete snapshots in a row without it
	CHECK ((state = 'ended') = (end_kind IS NOT NULL)),
	CHECK (state != 'ended' OR amount_csu = 0)
) WITHOUT ROWID;
CREATE INDEX liens_open ON liens (job_id) WHERE state != 'ended';
-- With the amounts: a refusal says what is set aside, and adds that up in here alone.
CREATE INDEX liens_open_by_account ON liens (account, user_id, counted, amount_csu, tasks_left, per_task_csu, state)
	WHERE state != 'ended';

-- state:  running --end--> ended   (an ended run may be restated; it never runs again)
--         running --its start failed--> ended, slurm_state PENDING --start--> running
--         (a component of a het job that could not start as a whole: the job waits again, and Slurm may keep its key)
CREATE TABLE runs (
	run_id INTEGER PRIMARY KEY AUTOINCREMENT,
	job_id INTEGER NOT NULL,
	submit_time INTEGER NOT NULL,
	restart_count INTEGER NOT NULL,
	state TEXT NOT NULL CHECK (state IN ('running', 'ended')),
	lien_id TEXT,
	counted INTEGER NOT NULL,	-- 0: grandfathered, its lien does not count; its charge does
	account TEXT NOT NULL,
	user_id INTEGER NOT NULL,
	user_name TEXT NOT NULL,
	name TEXT NOT NULL,
	array_job_id INTEGER,
	array_task_id INTEGER,
	partition TEXT NOT NULL,
	qos TEXT,
	start_time INTEGER,
	end_time INTEGER,
	elapsed_s INTEGER NOT NULL,
	cpus INTEGER NOT NULL,
	nodes TEXT NOT NULL,
	node_count INTEGER NOT NULL,
	time_limit_min INTEGER,
	slurm_state TEXT NOT NULL,
	lien_csu INTEGER NOT NULL,	-- its share of the lien
	proposed_csu INTEGER,		-- cost by an update that Slurm has not been seen to make
	proposed_us INTEGER,
	proposed_inputs TEXT,
	charge_csu INTEGER,		-- NULL while running
	ledger_csu INTEGER NOT NULL,	-- what it counts: its lien while open, then its charge
	bank_csu INTEGER NOT NULL DEFAULT 0,	-- what the bank's usage holds for it
	period TEXT NOT NULL,		-- the allocation in force when it started; '': not known
	bank_job_id TEXT,		-- NULL until something was delivered
	start_acked INTEGER NOT NULL DEFAULT 0,
	end_acked INTEGER NOT NULL DEFAULT 0,
	parked TEXT,			-- why the bank refuses it for good
	inputs TEXT NOT NULL,
	source TEXT NOT NULL,
	UNIQUE (job_id, submit_time, restart_count)
);
CREATE INDEX runs_running ON runs (job_id) WHERE state = 'running';
CREATE INDEX runs_by_array ON runs (array_job_id) WHERE array_job_id IS NOT NULL;
CREATE INDEX runs_by_account ON runs (account, end_time);
CREATE INDEX runs_of_no_period ON runs (account) WHERE period = '';
CREATE INDEX runs_open_by_account ON runs (account, user_id, counted, ledger_csu, lien_csu, state)
	WHERE state = 'running';

-- What the bank has not acknowledged. Retry counts and times are the relay's and live in its own file.
CREATE TABLE outbox (
	seq INTEGER PRIMARY KEY AUTOINCREMENT,
	run_id INTEGER NOT NULL,
	phase TEXT NOT NULL CHECK (phase IN ('start', 'end')),
	created_us INTEGER NOT NULL,
	UNIQUE (run_id, phase)
);

-- What the bank says may still be spent. user_id -1: the account.
CREATE TABLE funds (
	account TEXT NOT NULL,
	user_id INTEGER NOT NULL,
	kind TEXT NOT NULL CHECK (kind IN ('limited', 'unlimited', 'not_banked', 'unknown')),
	limit_csu INTEGER,
	remaining_csu INTEGER,
	allocation TEXT NOT NULL,
	start_time INTEGER,
	end_time INTEGER,
	reason TEXT,
	read_at INTEGER NOT NULL,
	PRIMARY KEY (account, user_id),
	CHECK ((kind = 'limited') = (remaining_csu IS NOT NULL))
) WITHOUT ROWID;

-- Sum of (ledger_csu - bank_csu) over runs, and of amount_csu over liens; by triggers only. user_id -1: the account.
CREATE TABLE exposure (
	account TEXT NOT NULL,
	user_id INTEGER NOT NULL,
	period TEXT NOT NULL,
	amount_csu INTEGER NOT NULL,
	PRIMARY KEY (account, user_id, period)
) WITHOUT ROWID;

CREATE TRIGGER liens_exposure_insert AFTER INSERT ON liens WHEN NEW.counted AND NEW.amount_csu != 0
BEGIN
	INSERT INTO exposure VALUES (NEW.account, NEW.user_id, '', NEW.amount_csu)
		ON CONFLICT (account, user_id, period) DO UPDATE SET amount_csu = amount_csu + NEW.amount_csu;
	INSERT INTO exposure VALUES (NEW.account, -1, '', NEW.amount_csu)
		ON CONFLICT (account, user_id, period) DO UPDATE SET amount_csu = amount_csu + NEW.amount_csu;
END;
CREATE TRIGGER liens_exposure_update AFTER UPDATE OF amount_csu ON liens
	WHEN NEW.counted AND NEW.amount_csu != OLD.amount_csu
BEGIN
	INSERT INTO exposure VALUES (NEW.account, NEW.user_id, '', NEW.amount_csu - OLD.amount_csu)
		ON CONFLICT (account, user_id, period) DO UPDATE SET amount_csu = amount_csu + NEW.amount_csu - OLD.amount_csu;
	INSERT INTO exposure VALUES (NEW.account, -1, '', NEW.amount_csu - OLD.amount_csu)
		ON CONFLICT (account, user_id, period) DO UPDATE SET amount_csu = amount_csu + NEW.amount_csu - OLD.amount_csu;
END;
CREATE TRIGGER liens_fixed BEFORE UPDATE OF account, user_id, counted ON liens
	WHEN NEW.account != OLD.account OR NEW.user_id != OLD.user_id OR NEW.counted != OLD.counted
BEGIN SELECT RAISE(ABORT, 'a lien keeps its account, user and kind'); END;
CREATE TRIGGER liens_no_delete BEFORE DELETE ON liens
BEGIN SELECT RAISE(ABORT, 'liens are ended, not deleted'); END;
CREATE TRIGGER runs_exposure_insert AFTER INSERT ON runs WHEN NEW.ledger_csu != NEW.bank_csu
BEGIN
	INSERT INTO exposure VALUES (NEW.account, NEW.user_id, NEW.period, NEW.ledger_csu - NEW.bank_csu)
		ON CONFLICT (account, user_id, period) DO UPDATE SET amount_csu = amount_csu + NEW.ledger_csu - NEW.bank_csu;
	INSERT INTO exposure VALUES (NEW.account, -1, NEW.period, NEW.ledger_csu - NEW.bank_csu)
		ON CONFLICT (account, user_id, period) DO UPDATE SET amount_csu = amount_csu + NEW.ledger_csu - NEW.bank_csu;
END;
CREATE TRIGGER runs_exposure_update AFTER UPDATE OF ledger_csu, bank_csu, period ON runs
BEGIN
	INSERT INTO exposure VALUES (OLD.account, OLD.user_id, OLD.period, OLD.bank_csu - OLD.ledger_csu)
		ON CONFLICT (account, user_id, period) DO UPDATE SET amount_csu = amount_csu + OLD.bank_csu - OLD.ledger_csu;
	INSERT INTO exposure VALUES (OLD.account, -1, OLD.period, OLD.bank_csu - OLD.ledger_csu)
		ON CONFLICT (account, user_id, period) DO UPDATE SET amount_csu = amount_csu + OLD.bank_csu - OLD.ledger_csu;
	INSERT INTO exposure VALUES (NEW.account, NEW.user_id, NEW.period, NEW.ledger_csu - NEW.bank_csu)
		ON CONFLICT (account, user_id, period) DO UPDATE SET amount_csu = amount_csu + NEW.ledger_csu - NEW.bank_csu;
	INSERT INTO exposure VALUES (NEW.account, -1, NEW.period, NEW.ledger_csu - NEW.bank_csu)
		ON CONFLICT (account, user_id, period) DO UPDATE SET amount_csu = amount_csu + NEW.ledger_csu - NEW.bank_csu;
END;
CREATE TRIGGER runs_fixed BEFORE UPDATE OF account, user_id, job_id, submit_time ON runs
	WHEN NEW.account != OLD.account OR NEW.user_id != OLD.user_id OR NEW.job_id != OLD.job_id
		OR NEW.submit_time != OLD.submit_time
BEGIN SELECT RAISE(ABORT, 'a run keeps its account, user and identity'); END;
CREATE TRIGGER runs_no_delete BEFORE DELETE ON runs
BEGIN SELECT RAISE(ABORT, 'runs are never deleted'); END;

-- Operators' exceptions: accepted although it does not fit.
CREATE TABLE exceptions (
	exception_id INTEGER PRIMARY KEY AUTOINCREMENT,
	user_id INTEGER,
	job_id INTEGER,
	until INTEGER NOT NULL,
	reason TEXT NOT NULL,
	actor TEXT NOT NULL,
	created_us INTEGER NOT NULL,
	CHECK ((user_id IS NULL) != (job_id IS NULL))
);

-- Price tables that were in force, from when.
CREATE TABLE price_lists (
	in_force_us INTEGER PRIMARY KEY,
	version TEXT NOT NULL,
	tables TEXT NOT NULL
);
