#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# What the containers of compose.yaml run: entrypoint.sh controller | node | bank | healthy (the bank's check).

set -eu

say() { printf 'entrypoint: %s\n' "$*"; }

# "$1 s in vain: what" unless the command after them succeeds in time.
wait_for() {
	left=$1
	what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		left=$((left - 1))
		[ "$left" -gt 0 ] || { printf 'entrypoint: error: waited in vain: %s\n' "$what" >&2; exit 1; }
		sleep 1
	done
}

listening() { # in hexadecimal, as in /proc/net/tcp
	grep -q "^ *[0-9]*: [0-9A-F]*:$1 [0-9A-F:]* 0A " /proc/net/tcp
}

start_munged() {
	install -d -o munge -g munge -m 0755 /run/munge
	runuser -u munge -- munged
}

controller() {
	if [ ! -s /etc/munge/munge.key ]; then
		(umask 077 && head -c 128 /dev/urandom >/etc/munge/munge.key.new)
		chown munge:munge /etc/munge /etc/munge/munge.key.new
		chmod 0400 /etc/munge/munge.key.new
		mv /etc/munge/munge.key.new /etc/munge/munge.key
	fi
	start_munged

	install -d -o mysql -g mysql /run/mysqld
	[ -d /var/lib/mysql/mysql ] || mariadb-install-db --user=mysql --skip-test-db >/dev/null
	mariadbd --user=mysql --skip-networking --innodb-lock-wait-timeout=900 &
	mariadbd=$!
	wait_for 60 "MariaDB" mariadb-admin ping
	mariadb -e "CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED VIA unix_socket;
		GRANT ALL ON slurm_acct_db.* TO slurm@localhost;"

	runuser -u slurm -- slurmdbd -D &
	slurmdbd=$!
	wait_for 60 "slurmdbd" listening 1AA3
	if [ -z "$(sacctmgr -n show cluster docker)" ]; then
		sacctmgr -i add cluster docker >/dev/null
		sacctmgr -i add account fc_alpha,fc_beta >/dev/null
		sacctmgr -i add user alice account=fc_alpha >/dev/null
		sacctmgr -i add user bob account=fc_beta >/dev/null
	fi

	install -o slurm -g slurm -m 0600 /tokens/relay /etc/slurm/bank-token
	install -d -o slurm -g slurm -m 0755 /run/slurm-banking
	install -d -o slurm -g slurm -m 0700 /var/lib/slurm-banking /var/lib/slurm/slurmctld
	runuser -u slurm -- slurmctld -D &
	slurmctld=$!

	# In the order in which each can still tell the next what it knows.
	stop() {
		say "stopping"
		for pid in "$slurmctld" "$slurmdbd" "$mariadbd"; do
			kill -TERM "$pid" 2>/dev/null || true
			wait "$pid" 2>/dev/null || true
		done
	}
	trap 'stop; exit 0' TERM INT
	wait "$slurmctld" || say "slurmctld ended"
	stop
	exit 1
}

node() {
	wait_for 60 "the munge key" test -s /etc/munge/munge.key
	start_munged
	install -d -m 0755 /var/spool/slurmd
	exec slurmd -D -N "$(hostname)"
}

bank() {
	if [ ! -s /tokens/relay ]; then
		say "a first set of accounts: fc_alpha (alice), fc_beta (bob)"
		year=$(date +%Y)
		for row in "fc_alpha alice 2001" "fc_beta bob 2002"; do
			# shellcheck disable=SC2086 # account, user, uid
			set -- $row
			slurm-banking bank account add "$1"
			slurm-banking bank user add "$2" --uid "$3" --account "$1"
			slurm-banking bank allocation add "$1" 1000 --start "$year-01-01" --end "$year-12-31"
		done
		slurm-banking bank token create --scope relay --name controller --file /tokens/relay
	fi
	exec slurm-banking bank serve --listen 0.0.0.0:8642
}

case ${1-} in
controller | node | bank) "$1" ;;
healthy) listening 21C2 ;;
*) exec "$@" ;;
esac
