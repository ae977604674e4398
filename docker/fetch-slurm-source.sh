#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Gives a Slurm source tree against whose headers the plugins can be built.
#
#   fetch-slurm-source.sh DEST             fetch, through apt, the source of the installed slurmctld into DEST,
#                                          prepare it, and print the tree's path (the only line on stdout)
#   fetch-slurm-source.sh --prepare TREE   only prepare a tree that is already there (of any origin)
#
# Safe to repeat: a tree that is there and prepared is only named. Nothing under /etc is changed: where apt
# has no deb-src entry, one is derived from the archive that offers slurmctld and used for this fetch alone.
#
# "Prepared" means that config.h and slurm/slurm_version.h exist, the two headers that Slurm's own ./configure
# would make. For the headers that a plugin includes, the few definitions below have the same effect as a whole
# configured config.h (on 22.05 the preprocessed text is identical).

set -eu

say() { printf 'fetch-slurm-source: %s\n' "$*" >&2; }
fail() { printf 'fetch-slurm-source: error: %s\n' "$*" >&2; exit 1; }

meta() { sed -n "s/^[[:space:]]*$1:[[:space:]]*\([^[:space:]]*\).*/\1/p" "$2/META" | head -n 1; }

# Writes config.h and slurm/slurm_version.h unless they exist; each appears whole or not at all.
prepare() {
	prepared=$1
	for expected in META slurm/slurm_version.h.in; do
		[ -f "$prepared/$expected" ] || fail "$prepared: not a Slurm source tree: $expected is missing"
	done
	major=$(meta Major "$prepared")
	minor=$(meta Minor "$prepared")
	micro=$(meta Micro "$prepared")
	version=$(meta Version "$prepared")
	case "$major/$minor/$micro" in
	*[!0-9/]* | /* | *// | */ | *//*) fail "$prepared/META: Major, Minor and Micro must be numbers, found \"$major/$minor/$micro\"" ;;
	esac
	number=$(echo "$major $minor $micro" | awk '{ printf "0x%02x%02x%02x", $1, $2, $3 }')
	if [ ! -f "$prepared/slurm/slurm_version.h" ]; then
		sed "s/^#undef SLURM_VERSION_NUMBER.*/#define SLURM_VERSION_NUMBER $number/" \
			"$prepared/slurm/slurm_version.h.in" >"$prepared/slurm/slurm_version.h.new"
		grep -q "^#define SLURM_VERSION_NUMBER $number" "$prepared/slurm/slurm_version.h.new" ||
			fail "$prepared/slurm/slurm_version.h.in: no line to put the version number in"
		mv "$prepared/slurm/slurm_version.h.new" "$prepared/slurm/slurm_version.h"
	fi
	if [ ! -f "$prepared/slurm/slurm.h" ] && [ -f "$prepared/slurm/slurm.h.in" ]; then # up to 20.11
		cp "$prepared/slurm/slurm.h.in" "$prepared/slurm/slurm.h.new"
		mv "$prepared/slurm/slurm.h.new" "$prepared/slurm/slurm.h"
	fi
	if [ ! -f "$prepared/config.h" ]; then
		cat >"$prepared/config.h.new" <<-END
			/* Written by slurm-banking's fetch-slurm-source.sh: what Slurm's headers ask config.h for. */
			#define NDEBUG 1
			#define USE_ALIAS 1
			#define HAVE_SYS_PRCTL_H 1
			#define WITH_CGROUP 1
			#define PACKAGE "slurm"
			#define SLURM_VERSION_STRING "$version"
			#define SLURM_MAJOR "$major"
			#define SLURM_MINOR "$minor"
			#define SLURM_MICRO "$micro"
		END
		mv "$prepared/config.h.new" "$prepared/config.h"
	fi
}

# The archive that offers this version of a package, as "URI SUITE COMPONENT"; nothing if apt knows none.
archive_of() {
	LC_ALL=C apt-cache policy "$1" 2>/dev/null | awk -v version="$2" '
		$1 == "***" || $0 ~ /^     [^ ]/ { here = ($1 == version || $2 == version) }
		$1 ~ /^[0-9]+$/ && $2 ~ /:\// && $3 ~ /\// {
			split($3, part, "/")
			line = $2 " " part[1] " " part[2]
			if (here) { if (exact == "") exact = line } else if (any == "") any = line
		}
		END { print (exact != "" ? exact : any) }'
}

# The keyring that the configured entry for this URI names, if it names one that is a file.
keyring_of() {
	cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
		awk -v uri="${1%/}" '
			/^[[:space:]]*#/ { next }
			/^[[:space:]]*$/ { named = 0; key = ""; next }
			{ for (i = 1; i <= NF; i++) { u = $i; sub(/\/$/, "", u); if (u == uri) named = 1 } }
			tolower($1) == "signed-by:" { key = $2 }
			/^deb/ {
				if (named && match($0, /signed-by=[^] ]*/)) { print substr($0, RSTART + 10, RLENGTH - 10); exit }
				named = 0; next
			}
			named && key ~ /^\// { print key; exit }'
}

# apt-get or apt-cache with the fetch's own lists and entries.
private_apt() {
	command=$1
	shift
	"$command" -o "Dir::State::lists=$work/lists" -o "Dir::Etc::sourcelist=$work/sources.list" \
		-o "Dir::Etc::sourceparts=$work/none" -o "Dir::Cache=$work/cache" -o Debug::NoLocking=true \
		-o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}

# $1: apt-cache, or "private_apt apt-cache"; prints the version to fetch: the very one, else one of the same Slurm.
pick_version() {
	LC_ALL=C $1 showsrc "$source" 2>/dev/null | sed -n 's/^Version: *//p' | awk -v want="$source_version" -v slurm="$slurm_version" '
		$0 == want { exact = $0 }
		{ v = $0; sub(/^[0-9]+:/, "", v); sub(/-[^-]*$/, "", v); if (v == slurm) like = $0 }
		END { print (exact != "" ? exact : like) }'
}

quietly() {
	if "$@" >"$work/output" 2>&1 </dev/null; then return 0; fi
	tail -n 20 "$work/output" >&2
	fail "\"$*\" failed (above: the end of its output)"
}

[ $# -ge 1 ] || fail "usage: fetch-slurm-source.sh DEST | --prepare TREE"
if [ "$1" = --prepare ]; then
	[ $# -eq 2 ] || fail "usage: fetch-slurm-source.sh --prepare TREE"
	prepare "$2"
	(cd "$2" && pwd)
	exit 0
fi
[ $# -eq 1 ] || fail "usage: fetch-slurm-source.sh DEST | --prepare TREE"

source_fields=$(dpkg-query -W -f '${db:Status-Status} ${source:Package} ${source:Version}' slurmctld 2>/dev/null) ||
	fail "slurmctld is not installed: run install-debian.sh first, or name a source tree yourself"
# shellcheck disable=SC2086 # three words
set -- "$1" $source_fields
[ "$2" = installed ] || fail "slurmctld is not installed: run install-debian.sh first, or name a source tree yourself"
dest=$1
source=$3
source_version=$4
slurm_version=$(printf '%s' "$source_version" | sed 's/^[0-9]*://; s/-[^-]*$//')

mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
tree=$dest/slurm-$slurm_version
if [ -f "$tree/config.h" ] && [ -f "$tree/slurm/slurm_version.h" ]; then
	say "already prepared"
	printf '%s\n' "$tree"
	exit 0
fi

command -v dpkg-source >/dev/null 2>&1 || fail "dpkg-source is missing: install-debian.sh build"
work=$(mktemp -d "$dest/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$work/lists/partial" "$work/none" "$work/cache/archives/partial" "$work/unpack"

version=$(pick_version apt-cache)
if [ -n "$version" ]; then
	say "fetching $source $version"
	(cd "$work/unpack" && quietly apt-get source -q --only-source -o APT::Sandbox::User=root \
		-o Acquire::Retries=3 "$source=$version")
else
	archive=$(archive_of slurmctld "$(dpkg-query -W -f '${Version}' slurmctld)")
	if [ -z "$archive" ]; then
		[ "$(id -u)" -eq 0 ] || fail "apt has no lists: run \"apt-get update\" as root, or name a source tree yourself"
		say "asking the package archive for its lists"
		quietly apt-get update -q -o Acquire::Retries=3
		archive=$(archive_of slurmctld "$(dpkg-query -W -f '${Version}' slurmctld)")
	fi
	[ -n "$archive" ] || fail "apt knows no archive that offers slurmctld: name a source tree yourself"
	# shellcheck disable=SC2086 # URI, suite, component
	set -- $archive
	keyring=$(keyring_of "$1")
	say "no deb-src entry: using $1 $2/$3 for this fetch alone"
	printf 'deb-src %s%s %s %s\n' "${keyring:+[signed-by=$keyring] }" "$1" "$2" "$3" >"$work/sources.list"
	quietly private_apt apt-get update -q
	version=$(pick_version "private_apt apt-cache")
	[ -n "$version" ] || fail "$1 $2/$3 has no source of Slurm $slurm_version: name a source tree yourself"
	say "fetching $source $version"
	(cd "$work/unpack" && quietly private_apt apt-get source -q --only-source "$source=$version")
fi

unpacked=
for directory in "$work"/unpack/*/; do
	[ ! -f "${directory}META" ] || unpacked=${directory%/}
done
[ -n "$unpacked" ] || fail "$source $version unpacked to no Slurm source tree"
prepare "$unpacked"
rm -rf "$tree"
mv "$unpacked" "$tree"
say "prepared Slurm $slurm_version"
printf '%s\n' "$tree"
