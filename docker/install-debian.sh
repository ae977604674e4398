#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Installs the Debian packages that slurm-banking is built, run and tested with.
#
#   install-debian.sh            everything: build, run, a whole cluster, tests
#   install-debian.sh GROUP...   some of it
#   install-debian.sh --check [GROUP...]   installs nothing; lists what is missing, and fails if anything is
#
# Groups:
#   runtime     Python and the libraries that the package imports outside slurmctld
#   build       compiler, cffi and what fetches Slurm's source
#   controller  slurmctld and the client commands
#   node        slurmd and the client commands
#   database    slurmdbd and MariaDB
#   rest        slurmrestd, Slurm's plugin for tokens, and what reads keys for them
#   tests       PostgreSQL, and what the tests and linters call
#
# Safe to repeat: when nothing is missing it neither uses the network nor changes anything. No service is
# started by the installation (a policy-rc.d of ours answers for as long as apt runs).

set -eu

say() { printf 'install-debian: %s\n' "$*"; }
fail() { printf 'install-debian: error: %s\n' "$*" >&2; exit 1; }

POLICY=/usr/sbin/policy-rc.d
POLICY_SAVED=$POLICY.saved-by-slurm-banking
POLICY_MARK='written by slurm-banking install-debian.sh'

# "3.11" for "3.11.2-1+b1": libpython carries the version in its package's name.
python_minor() {
	version=$(dpkg-query -W -f '${Version}' python3 2>/dev/null) || version=
	[ -n "$version" ] || version=$(apt-cache policy python3 2>/dev/null | sed -n 's/^ *Candidate: *//p')
	printf '%s' "$version" | sed -n 's/^\([0-9]*\.[0-9]*\).*/\1/p'
}

packages_of() {
	case $1 in
	runtime)
		echo "python3 python3-cffi-backend python3-requests python3-attr python3-dateutil ca-certificates"
		minor=$(python_minor)
		# Unknown only before the first "apt-get update" of a system without Python; asked again after it.
		[ -z "$minor" ] || echo "libpython$minor"
		;;
	build) echo "gcc libc6-dev make dpkg-dev python3-dev python3-venv python3-cffi" ;;
	controller) echo "slurmctld slurm-client munge" ;;
	node) echo "slurmd slurm-client munge" ;;
	database) echo "slurmdbd munge mariadb-server mariadb-client" ;;
	rest) echo "slurmrestd slurm-wlm-jwt-plugin python3-cryptography" ;;
	tests) echo "postgresql procps shellcheck libfaketime valgrind strace curl openssl" ;;
	*) fail "unknown group \"$1\": expected runtime, build, controller, node, database, rest or tests" ;;
	esac
}

wanted() { for group in $groups; do packages_of "$group"; done | tr ' ' '\n' | sort -u; }

# Names in `wanted` that dpkg does not have installed.
missing() {
	wanted >"$work/wanted"
	dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null |
		sed -n 's/^installed //p' | sort -u >"$work/installed"
	comm -23 "$work/wanted" "$work/installed"
}

deny_service_starts() {
	if [ -e "$POLICY_SAVED" ] || [ -L "$POLICY_SAVED" ]; then
		mv -f "$POLICY_SAVED" "$POLICY" # an earlier run was killed before it could put this back
	elif grep -qs "$POLICY_MARK" "$POLICY"; then
		rm -f "$POLICY"
	fi
	policy_is_ours=yes
	if [ -e "$POLICY" ] || [ -L "$POLICY" ]; then mv "$POLICY" "$POLICY_SAVED"; fi
	printf '#!/bin/sh\n# %s\nexit 101\n' "$POLICY_MARK" >"$POLICY"
	chmod 0755 "$POLICY"
}

restore_service_starts() {
	[ "$policy_is_ours" = yes ] || return 0
	policy_is_ours=no
	if [ -e "$POLICY_SAVED" ] || [ -L "$POLICY_SAVED" ]; then
		mv -f "$POLICY_SAVED" "$POLICY"
	else
		rm -f "$POLICY"
	fi
}

cleanup() {
	restore_service_starts
	rm -rf "$work"
}

# Runs a command with its output in a file, which is shown only when the command fails.
quietly() {
	if "$@" >"$work/output" 2>&1 </dev/null; then return 0; fi
	tail -n 40 "$work/output" >&2
	fail "\"$*\" failed (above: the end of its output)"
}

check_only=no
groups=
for argument in "$@"; do
	case $argument in
	--check) check_only=yes ;;
	-h | --help) sed -n '4,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
	-*) fail "unknown option \"$argument\": expected --check or the name of a group" ;;
	*) packages_of "$argument" >/dev/null; groups="$groups $argument" ;;
	esac
done
[ -n "$groups" ] || groups="runtime build controller node database rest tests"

command -v dpkg-query >/dev/null 2>&1 || fail "no dpkg-query here: this script is for Debian and its kin"

policy_is_ours=no
work=$(mktemp -d)
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

absent=$(missing)
if [ -z "$absent" ]; then
	say "nothing to do: all packages are installed"
	exit 0
fi
if [ "$check_only" = yes ]; then
	# shellcheck disable=SC2086 # one line for the whole list
	say "missing:" $absent
	exit 1
fi

# shellcheck disable=SC2086 # one line for the whole list
[ "$(id -u)" -eq 0 ] || fail "must run as root to install:" $absent

export DEBIAN_FRONTEND=noninteractive
export DEBIAN_PRIORITY=critical

say "asking the package archive for its lists"
quietly apt-get update -q -o Acquire::Retries=3

absent=$(missing) # once more: libpython's name may be known only now
# shellcheck disable=SC2086 # a list of words
say "installing $(printf '%s\n' $absent | wc -l) packages and what they need:" $absent
deny_service_starts
# shellcheck disable=SC2086
quietly apt-get install -q -y --no-install-recommends -o Acquire::Retries=3 \
	-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold $absent
restore_service_starts

absent=$(missing)
# shellcheck disable=SC2086
[ -z "$absent" ] || fail "still missing after the installation:" $absent
say "done"
