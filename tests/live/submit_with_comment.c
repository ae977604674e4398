/* SPDX-License-Identifier: BSD-3-Clause */
/* An unprivileged client that speaks Slurm's API itself: submits a job with an admin_comment of its own making. */
#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(25, 11, 0)
#define JOB_ID(response) (response)->step_id.job_id
#else
#define JOB_ID(response) (response)->job_id
#endif

int main(int argc, char **argv)
{
	static char *environment[] = { "PATH=/usr/bin:/bin", NULL };
	job_desc_msg_t job;
	submit_response_msg_t *response = NULL;

	if (argc != 3)
		return 2;
	slurm_init(NULL);
	slurm_init_job_desc_msg(&job);
	job.admin_comment = argv[1];
	job.time_limit = atoi(argv[2]);
	job.min_cpus = 1;
	job.user_id = getuid();
	job.group_id = getgid();
	job.name = "forged";
	job.work_dir = "/tmp";
	job.std_out = "/dev/null";
	job.std_err = "/dev/null";
	job.environment = environment;
	job.env_size = 1;
	job.script = "#!/bin/sh\nsleep 1\n";
	if (slurm_submit_batch_job(&job, &response)) {
		fprintf(stderr, "%s\n", slurm_strerror(errno));
		return 1;
	}
	printf("%u\n", JOB_ID(response));
	return 0;
}
