#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Slurm's plugin directory on this host: where job_submit plugins are. Prints one path.
set -eu
for directory in /usr/lib64/slurm /usr/lib/*/slurm-wlm /usr/lib/*/slurm /usr/lib/slurm-wlm /usr/lib/slurm /usr/local/lib/slurm; do
	case $(echo "$directory"/job_submit_*.so) in
	*'*'*) ;;
	*) printf '%s\n' "$directory"; exit 0 ;;
	esac
done
printf '%s\n' /usr/lib64/slurm
