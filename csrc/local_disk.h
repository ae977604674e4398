/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * local_disk.h - does a path stay on disks of this host? Asked before anything of it is touched that could hang.
 *
 * The rule for file systems is slurm_banking/state_dir.py's. Neither Slurm nor Python is known here.
 */
#ifndef BANKING_LOCAL_DISK_H
#define BANKING_LOCAL_DISK_H

#include <stddef.h>

/*
 * Walks the path, through its symbolic links, and looks up each step's file system before it touches the step. Returns 0,
 * or -1 with the reason in why. The file itself need not exist; where the kernel does not tell, a path is local.
 */
extern int banking_local_disk(const char *path, char *why, size_t size);

#endif
