-- SPDX-License-Identifier: BSD-3-Clause
-- The ledger's named queries; transaction.py runs them. A query goes from its "-- name:" line to the next one.

-- name: get_meta
SELECT value FROM meta WHERE key = ?;

-- name: put_meta
INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: append_entry
INSERT INTO entries (at_us, kind, lien_id, job_id, submit_time, restart_count, account, user_id, amount_csu, actor,
	reason, inputs) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: get_funds
SELECT account, user_id, kind, limit_csu, remaining_csu, allocation, start_time, end_time, reason, read_at
FROM funds WHERE account = ? AND user_id IN (-1, ?);

-- name: put_funds
INSERT INTO funds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (account, user_id) DO UPDATE SET kind = excluded.kind, limit_csu = excluded.limit_csu,
	remaining_csu = excluded.remaining_csu, allocation = excluded.allocation, start_time = excluded.start_time,
	end_time = excluded.end_time, reason = excluded.reason, read_at = excluded.read_at;

-- name: spend_funds
UPDATE funds SET remaining_csu = remaining_csu - :spent_csu
WHERE account = :account AND user_id IN (-1, :user_id) AND kind = 'limited';

-- name: get_exposure
SELECT user_id, SUM(amount_csu) AS amount_csu FROM exposure
WHERE account = ? AND user_id IN (-1, ?) AND period IN ('', ?) GROUP BY user_id;

-- name: accounts_in_use
SELECT DISTINCT account, user_id FROM (
	SELECT account, user_id FROM liens WHERE state != 'ended'
	UNION SELECT account, user_id FROM runs WHERE state = 'running'
	UNION SELECT runs.account, runs.user_id FROM outbox JOIN runs USING (run_id));

-- name: set_aside_queued
SELECT TOTAL(counted) AS jobs, TOTAL(counted * amount_csu) AS csu, TOTAL(1 - counted) AS gf_jobs,
	TOTAL((1 - counted) * tasks_left * per_task_csu) AS gf_csu
FROM liens WHERE account = ? AND state != 'ended';

-- name: set_aside_running
SELECT TOTAL(counted) AS jobs, TOTAL(counted * ledger_csu) AS csu, TOTAL(1 - counted) AS gf_jobs,
	TOTAL((1 - counted) * lien_csu) AS gf_csu
FROM runs WHERE account = ? AND state = 'running';

-- name: insert_lien
INSERT INTO liens (lien_id, state, origin, counted, account, user_id, job_id, submit_time, restart_count, tasks_left,
	per_task_csu, amount_csu, supersedes, user_name, name, inputs, created_us)
VALUES (:lien_id, :state, :origin, :counted, :account, :user_id, :job_id, :submit_time, :restart_count, :tasks_left,
	:per_task_csu, :amount_csu, :supersedes, :user_name, :name, :inputs, :created_us);

-- name: get_lien
SELECT * FROM liens WHERE lien_id = ?;

-- name: open_liens
SELECT * FROM liens WHERE state != 'ended' ORDER BY created_us, lien_id;

-- name: open_liens_by_job
SELECT * FROM liens WHERE state != 'ended' AND job_id IN (?, ?) ORDER BY created_us DESC;

-- name: liens_by_job
SELECT * FROM liens WHERE job_id IN (?, ?) ORDER BY created_us DESC;

-- name: set_lien_proposal
UPDATE liens SET proposed_csu = :proposed_csu, proposed_us = :proposed_us, proposed_inputs = :proposed_inputs,
	amount_csu = :amount_csu WHERE lien_id = :lien_id AND state != 'ended';

-- name: bind_lien
UPDATE liens SET state = 'confirmed', job_id = :job_id, submit_time = :submit_time, restart_count = :restart_count,
	tasks_left = :tasks_left, per_task_csu = :per_task_csu, inputs = :inputs, seen_inputs = :seen_inputs,
	proposed_csu = :proposed_csu, proposed_us = :proposed_us, proposed_inputs = :proposed_inputs,
	amount_csu = :amount_csu, confirmed_us = COALESCE(confirmed_us, :now_us), missed = 0
WHERE lien_id = :lien_id AND state != 'ended';

-- name: bind_lien_to_job
UPDATE liens SET state = 'confirmed', job_id = :job_id, submit_time = :submit_time,
	confirmed_us = COALESCE(confirmed_us, :now_us) WHERE lien_id = :lien_id AND job_id IS NULL;

-- name: unsettle_lien
UPDATE liens SET submit_time = NULL WHERE lien_id = ? AND state != 'ended';

-- name: take_lien_tasks
UPDATE liens SET tasks_left = :tasks_left, amount_csu = :amount_csu, missed = 0 WHERE lien_id = :lien_id;

-- name: end_lien
UPDATE liens SET state = 'ended', end_kind = :kind, tasks_left = 0, amount_csu = 0, proposed_csu = NULL,
	proposed_us = NULL, proposed_inputs = NULL, ended_us = :now_us WHERE lien_id = :lien_id AND state != 'ended';

-- name: set_lien_missed
UPDATE liens SET missed = ? WHERE lien_id = ?;

-- name: insert_run
INSERT INTO runs (job_id, submit_time, restart_count, state, lien_id, counted, account, user_id, user_name, name,
	array_job_id, array_task_id, partition, qos, start_time, end_time, elapsed_s, cpus, nodes, node_count,
	time_limit_min, slurm_state, lien_csu, charge_csu, ledger_csu, period, inputs, source, proposed_csu, proposed_us,
	proposed_inputs)
VALUES (:job_id, :submit_time, :restart_count, :state, :lien_id, :counted, :account, :user_id, :user_name, :name,
	:array_job_id, :array_task_id, :partition, :qos, :start_time, :end_time, :elapsed_s, :cpus, :nodes, :node_count,
	:time_limit_min, :slurm_state, :lien_csu, :charge_csu, :ledger_csu, :period, :inputs, :source, :proposed_csu,
	:proposed_us, :proposed_inputs);

-- name: get_run
SELECT * FROM runs WHERE run_id = ?;

-- name: find_run
SELECT * FROM runs WHERE job_id = ? AND submit_time = ? AND restart_count >= -1 ORDER BY restart_count DESC;

-- name: running_runs
SELECT * FROM runs WHERE state = 'running' ORDER BY run_id;

-- name: runs_by_job
SELECT * FROM runs WHERE job_id = :job_id OR array_job_id = :job_id ORDER BY run_id;

-- name: set_run_proposal
UPDATE runs SET proposed_csu = :proposed_csu, proposed_us = :proposed_us, proposed_inputs = :proposed_inputs,
	ledger_csu = :ledger_csu WHERE run_id = :run_id AND state = 'running';

-- name: reamount_run
UPDATE runs SET lien_csu = :lien_csu, inputs = :inputs, time_limit_min = :time_limit_min, cpus = :cpus,
	partition = :partition, qos = :qos, proposed_csu = NULL, proposed_us = NULL, proposed_inputs = NULL,
	ledger_csu = :ledger_csu WHERE run_id = :run_id AND state = 'running';

-- name: resizes
SELECT inputs FROM entries WHERE job_id = ? AND submit_time = ? AND account = ? AND user_id = ? AND kind = 'note'
	AND reason = 'resized' ORDER BY seq;

-- name: revive_run
UPDATE runs SET state = 'running', lien_id = :lien_id, counted = :counted, partition = :partition, qos = :qos,
	start_time = :start_time, end_time = NULL, elapsed_s = 0, cpus = :cpus, nodes = :nodes, node_count = :node_count,
	time_limit_min = :time_limit_min, slurm_state = :slurm_state, lien_csu = :lien_csu, charge_csu = NULL,
	ledger_csu = :ledger_csu, bank_csu = 0, period = :period, end_acked = 0, parked = NULL, inputs = :inputs,
	source = :source, proposed_csu = :proposed_csu, proposed_us = :proposed_us, proposed_inputs = :proposed_inputs
WHERE run_id = :run_id AND state = 'ended';

-- name: recharge_run
UPDATE runs SET charge_csu = :charge_csu, ledger_csu = :charge_csu WHERE run_id = :run_id AND state = 'ended';

-- name: end_run
UPDATE runs SET state = 'ended', slurm_state = :slurm_state, start_time = :start_time, end_time = :end_time,
	elapsed_s = :elapsed_s, cpus = :cpus, nodes = :nodes, node_count = :node_count, partition = :partition, qos = :qos,
	time_limit_min = :time_limit_min, charge_csu = :charge_csu, ledger_csu = :charge_csu,
	bank_csu = CASE WHEN period IN ('', :period) THEN bank_csu ELSE 0 END, period = :period,
	proposed_csu = NULL, proposed_us = NULL, proposed_inputs = NULL, inputs = :inputs, source = :source,
	end_acked = 0, parked = NULL WHERE run_id = :run_id;

-- name: lose_run
UPDATE runs SET state = 'ended', slurm_state = :slurm_state, end_time = start_time, elapsed_s = 0, charge_csu = 0,
	ledger_csu = 0, proposed_csu = NULL, proposed_us = NULL, proposed_inputs = NULL, inputs = :inputs, end_acked = 0,
	parked = NULL WHERE run_id = :run_id AND state = 'running';

-- name: strike_run
UPDATE runs SET state = 'ended', slurm_state = :slurm_state, restart_count = :restart_count,
	start_time = COALESCE(start_time, submit_time), end_time = COALESCE(end_time, start_time, submit_time),
	elapsed_s = 0, charge_csu = 0, ledger_csu = 0, proposed_csu = NULL, proposed_us = NULL, proposed_inputs = NULL,
	bank_csu = CASE WHEN :shares_row THEN 0 ELSE bank_csu END,
	bank_job_id = CASE WHEN :shares_row THEN NULL ELSE bank_job_id END,
	inputs = :inputs, end_acked = 0, parked = NULL WHERE run_id = :run_id;

-- name: make_way
UPDATE runs SET restart_count = :restart_count, inputs = :inputs WHERE run_id = :run_id;

-- name: others_row
SELECT COUNT(*) FROM runs WHERE job_id = ? AND bank_job_id = ? AND run_id != ? AND slurm_state != 'STRUCK';

-- name: reopen_end
UPDATE runs SET bank_csu = :bank_csu, bank_job_id = :bank_job_id, start_acked = 0, end_acked = 0, parked = NULL
WHERE run_id = :run_id AND state = 'ended';

-- name: charges_of_run
SELECT * FROM entries WHERE job_id = :job_id AND submit_time = :submit_time
	AND (restart_count IN (:restart_count, -1) OR :restart_count < 0)
	AND account = :account AND user_id = :user_id AND kind IN ('start', 'charge', 'restated') ORDER BY seq;

-- name: put_outbox
INSERT INTO outbox (run_id, phase, created_us) VALUES (?, ?, ?) ON CONFLICT (run_id, phase) DO NOTHING;

-- name: drop_outbox
DELETE FROM outbox WHERE run_id = ? AND phase = ?;

-- name: next_deliveries
SELECT outbox.seq AS outbox_seq, outbox.phase AS outbox_phase, outbox.created_us AS outbox_created_us, runs.*
FROM outbox JOIN runs USING (run_id) WHERE outbox.seq > ? ORDER BY outbox.seq LIMIT ?;

-- name: delivery_of
SELECT outbox.seq AS outbox_seq, outbox.phase AS outbox_phase, outbox.created_us AS outbox_created_us, runs.*
FROM outbox JOIN runs USING (run_id) WHERE outbox.run_id = ? ORDER BY outbox.seq LIMIT 1;

-- name: count_outbox
SELECT COUNT(*) AS waiting, MIN(created_us) AS oldest_us FROM outbox;

-- name: acknowledge
UPDATE runs SET bank_csu = :bank_csu, bank_job_id = COALESCE(:bank_job_id, bank_job_id),
	start_acked = start_acked OR :start_acked, end_acked = :end_acked, parked = NULL WHERE run_id = :run_id;

-- name: park_run
UPDATE runs SET parked = ? WHERE run_id = ?;

-- name: parked_runs
SELECT * FROM runs WHERE parked IS NOT NULL ORDER BY run_id;

-- name: settle_period
UPDATE runs SET period = CASE WHEN start_time >= :start_time THEN :allocation ELSE 'before ' || :allocation END
WHERE account = :account AND period = '' AND start_time IS NOT NULL;

-- name: renew_period
UPDATE runs SET period = :allocation
WHERE account = :account AND (end_time IS NULL OR end_time >= :start_time) AND start_time >= :start_time
	AND period NOT IN ('', :allocation);

-- name: forget_other_periods
DELETE FROM funds WHERE account = :account AND user_id != -1 AND allocation != :allocation;

-- name: insert_exception
INSERT INTO exceptions (user_id, job_id, until, reason, actor, created_us) VALUES (?, ?, ?, ?, ?, ?);

-- name: find_exception
SELECT reason FROM exceptions WHERE until > :now AND (user_id = :user_id OR job_id = :job_id) LIMIT 1;

-- name: exceptions_in_force
SELECT * FROM exceptions WHERE until > ? ORDER BY exception_id;

-- name: latest_prices
SELECT in_force_us, version FROM price_lists ORDER BY in_force_us DESC LIMIT 1;

-- name: insert_prices
INSERT INTO price_lists VALUES (?, ?, ?);

-- name: prices_at
SELECT version, tables FROM price_lists WHERE in_force_us <= ? ORDER BY in_force_us DESC LIMIT 1;

-- name: like_notes
SELECT COUNT(*), COALESCE(SUM(inputs IS :inputs), 0) FROM entries
	WHERE job_id = :job_id AND kind = 'note' AND reason = :reason AND at_us > :since_us;

-- name: entries_by_job
SELECT * FROM entries WHERE job_id = :job_id
	OR lien_id IN (SELECT lien_id FROM liens WHERE job_id = :job_id)
	OR job_id IN (SELECT job_id FROM runs WHERE array_job_id = :job_id) ORDER BY seq;

-- name: entries_by_account
SELECT * FROM entries WHERE account = ? AND at_us >= ? AND at_us < ? ORDER BY seq;

-- name: ended_runs
SELECT * FROM runs WHERE state = 'ended' AND charge_csu IS NOT NULL
	AND (:account IS NULL OR account = :account) AND (:user_id IS NULL OR user_id = :user_id)
	AND end_time >= :since AND end_time < :until ORDER BY end_time, run_id LIMIT :limit;

-- name: running_at_bank
SELECT COALESCE(SUM(bank_csu), 0) FROM runs WHERE account = ? AND state = 'running';

-- name: open_liens_of
SELECT * FROM liens WHERE state != 'ended' AND (:account IS NULL OR account = :account)
	AND (:user_id IS NULL OR user_id = :user_id) ORDER BY created_us, lien_id LIMIT :limit;

-- name: running_runs_of
SELECT * FROM runs WHERE state = 'running' AND (:account IS NULL OR account = :account)
	AND (:user_id IS NULL OR user_id = :user_id) ORDER BY run_id LIMIT :limit;

-- name: entries_by_lien
SELECT * FROM entries WHERE lien_id = ? ORDER BY seq LIMIT ?;

-- name: outbox_of_run
SELECT phase, created_us FROM outbox WHERE run_id = ? ORDER BY seq;

-- name: account_entries_end
SELECT seq FROM entries WHERE account = ? AND seq > ? ORDER BY seq LIMIT 1 OFFSET ?;

-- name: postings
SELECT entries.seq AS posting_seq, entries.at_us AS posting_at_us, entries.kind AS posting_kind,
	entries.amount_csu AS posting_amount_csu, entries.reason AS posting_reason, entries.actor AS posting_actor,
	entries.inputs AS posting_inputs,
	(SELECT COALESCE(SUM(later.amount_csu), 0) FROM entries AS later
		WHERE later.kind = 'restated' AND later.job_id = entries.job_id AND later.submit_time = entries.submit_time
			AND later.account = entries.account AND later.user_id = entries.user_id
	) AS posting_restated_csu, runs.*
FROM entries JOIN runs ON runs.run_id = COALESCE(
	(SELECT run_id FROM runs AS exact WHERE exact.job_id = entries.job_id AND exact.submit_time = entries.submit_time
		AND exact.restart_count = entries.restart_count AND exact.account = entries.account
		AND exact.user_id = entries.user_id),
	(SELECT MAX(run_id) FROM runs AS struck WHERE struck.job_id = entries.job_id
		AND struck.submit_time = entries.submit_time AND struck.slurm_state = 'STRUCK'
		AND struck.account = entries.account AND struck.user_id = entries.user_id),
	(SELECT MAX(run_id) FROM runs AS near WHERE near.job_id = entries.job_id
		AND near.submit_time = entries.submit_time AND near.account = entries.account
		AND near.user_id = entries.user_id))
WHERE entries.account = :account AND entries.seq > :after_seq AND entries.seq <= :last_seq
	AND entries.kind IN ('charge', 'restated') AND entries.at_us >= :since_us AND entries.at_us < :until_us
	AND (:user_id IS NULL OR entries.user_id = :user_id)
ORDER BY entries.seq;

-- name: check_exposure
SELECT 'exposure of account ' || account || ' is ' || kept || ', its liens and runs amount to ' || made AS problem
FROM (
	SELECT account, SUM(kept) AS kept, SUM(made) AS made FROM (
		SELECT account, amount_csu AS kept, 0 AS made FROM exposure WHERE user_id = -1
		UNION ALL SELECT account, 0, amount_csu FROM liens WHERE counted
		UNION ALL SELECT account, 0, ledger_csu - bank_csu FROM runs)
	GROUP BY account)
WHERE kept != made;

-- name: open_liens_page
SELECT * FROM liens WHERE state != 'ended' AND (job_id, lien_id) > (?, ?) ORDER BY job_id, lien_id LIMIT ?;

-- name: open_liens_unbound
SELECT * FROM liens WHERE state != 'ended' AND job_id IS NULL ORDER BY lien_id LIMIT ?;

-- name: running_runs_page
SELECT * FROM runs WHERE state = 'running' AND (job_id, run_id) > (?, ?) ORDER BY job_id, run_id LIMIT ?;

-- name: unconfirmed_since
SELECT MIN(created_us) FROM liens WHERE state != 'ended' AND state = 'unconfirmed';

-- name: count_open_liens
SELECT COUNT(*) FROM liens WHERE state != 'ended';

-- name: glance_of_job
SELECT run_id, job_id, submit_time, state, slurm_state, account, user_id, start_time, end_time, charge_csu, ledger_csu,
	bank_csu, period, bank_job_id, end_acked, parked,
	(SELECT COUNT(*) FROM outbox WHERE outbox.run_id = runs.run_id) AS waiting
FROM runs WHERE job_id = ? AND slurm_state != 'STRUCK' ORDER BY run_id;

-- name: accounts_of_runs
WITH RECURSIVE each_account(account) AS (
	SELECT MIN(account) FROM runs
	UNION ALL SELECT (SELECT MIN(account) FROM runs WHERE runs.account > each_account.account)
		FROM each_account WHERE each_account.account IS NOT NULL)
SELECT account FROM each_account WHERE account IS NOT NULL;

-- name: keys_of_ended
SELECT run_id, job_id, submit_time FROM runs
WHERE account = ? AND end_time >= ? AND end_time < ? AND state = 'ended' AND slurm_state != 'STRUCK';

-- name: count_ended
SELECT COUNT(*) FROM (SELECT 1 FROM runs WHERE account = ? AND end_time >= ? AND end_time < ? LIMIT ?);

-- name: price_history
SELECT in_force_us, version, tables FROM price_lists ORDER BY in_force_us;

-- name: fold_of_account
SELECT (SELECT COALESCE(SUM(amount_csu), 0) FROM entries WHERE account = :account) AS entered_csu,
	(SELECT COALESCE(SUM(ledger_csu), 0) FROM runs WHERE account = :account)
	+ (SELECT COALESCE(SUM(amount_csu), 0) FROM liens
		WHERE account = :account AND counted AND state != 'ended') AS kept_csu;
