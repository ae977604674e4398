# SPDX-License-Identifier: BSD-3-Clause
"""The first tables."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

from slurm_banking.server.constraints import check_constraint


class Migration(migrations.Migration):
    initial = True

    dependencies: list[tuple[str, str]] = []

    operations = [
        migrations.CreateModel(
            name="Account",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=255, unique=True)),
                ("title", models.CharField(blank=True, max_length=255)),
                ("description", models.TextField(blank=True)),
                (
                    "unlimited",
                    models.BooleanField(
                        default=False, help_text="Usage is recorded, nothing is refused for it."
                    ),
                ),
                ("active", models.BooleanField(default=True)),
                ("created", models.DateTimeField(auto_now_add=True)),
                ("modified", models.DateTimeField(auto_now=True)),
            ],
            options={
                "ordering": ["name"],
            },
        ),
        migrations.CreateModel(
            name="ClusterUser",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("username", models.CharField(max_length=150, unique=True)),
                (
                    "cluster_uid",
                    models.CharField(max_length=20, unique=True, verbose_name="cluster UID"),
                ),
                ("first_name", models.CharField(blank=True, max_length=150)),
                ("last_name", models.CharField(blank=True, max_length=150)),
                ("email", models.EmailField(blank=True, max_length=254)),
                ("created", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "verbose_name": "user",
                "ordering": ["username"],
            },
        ),
        migrations.CreateModel(
            name="Token",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=190, unique=True)),
                (
                    "scope",
                    models.CharField(
                        choices=[
                            ("admin", "admin"),
                            ("relay", "relay"),
                            ("start-only", "start-only"),
                            ("read", "read"),
                        ],
                        max_length=20,
                    ),
                ),
                ("digest", models.CharField(max_length=64, unique=True)),
                ("created", models.DateTimeField(default=django.utils.timezone.now)),
                ("created_by", models.CharField(max_length=200)),
                ("expires", models.DateTimeField(null=True)),
                ("revoked", models.DateTimeField(null=True)),
            ],
            options={
                "ordering": ["name"],
            },
        ),
        migrations.CreateModel(
            name="Allocation",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("resource", models.CharField(max_length=128)),
                ("start_date", models.DateField()),
                ("end_date", models.DateField(blank=True, null=True)),
                (
                    "status",
                    models.CharField(
                        choices=[("Active", "Active"), ("Expired", "Expired")],
                        default="Active",
                        max_length=20,
                    ),
                ),
                ("description", models.CharField(blank=True, max_length=512)),
                ("amount_csu", models.BigIntegerField(default=0)),
                ("used_csu", models.BigIntegerField(default=0)),
                (
                    "account",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="allocations",
                        to="bank.account",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="AllocationUser",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("used_csu", models.BigIntegerField(default=0)),
                (
                    "allocation",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="allocation_users",
                        to="bank.allocation",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="allocation_users",
                        to="bank.clusteruser",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Job",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("jobslurmid", models.CharField(max_length=150, unique=True)),
                ("submitdate", models.DateTimeField(null=True)),
                ("startdate", models.DateTimeField(null=True)),
                ("enddate", models.DateTimeField(null=True)),
                ("amount_csu", models.BigIntegerField(default=0)),
                ("jobstatus", models.CharField(max_length=50, null=True)),
                ("partition", models.CharField(max_length=50, null=True)),
                ("qos", models.CharField(max_length=50, null=True)),
                ("nodes", models.JSONField(default=list)),
                ("num_cpus", models.BigIntegerField(null=True)),
                ("num_req_nodes", models.BigIntegerField(null=True)),
                ("num_alloc_nodes", models.BigIntegerField(null=True)),
                ("raw_time", models.FloatField(null=True)),
                ("cpu_time", models.FloatField(null=True)),
                ("counted_csu", models.BigIntegerField(default=0)),
                (
                    "account",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="jobs",
                        to="bank.account",
                    ),
                ),
                (
                    "allocation",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="jobs",
                        to="bank.allocation",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="jobs",
                        to="bank.clusteruser",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Entry",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("deposit", "deposit"),
                            ("withdrawal", "withdrawal"),
                            ("charge", "charge"),
                            ("adjustment", "adjustment"),
                        ],
                        max_length=20,
                    ),
                ),
                ("amount_csu", models.BigIntegerField(verbose_name="amount (hundredths of an SU)")),
                ("reason", models.TextField()),
                ("actor", models.CharField(max_length=200)),
                ("time", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "allocation",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="entries",
                        to="bank.allocation",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="entries",
                        to="bank.clusteruser",
                    ),
                ),
                (
                    "job",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="entries",
                        to="bank.job",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "entries",
            },
        ),
        migrations.CreateModel(
            name="Membership",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("active", models.BooleanField(default=True)),
                (
                    "limit_csu",
                    models.BigIntegerField(
                        blank=True,
                        help_text="Empty: the account's own.",
                        null=True,
                        verbose_name="limit (hundredths of an SU)",
                    ),
                ),
                ("role", models.CharField(default="User", max_length=50)),
                (
                    "account",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="memberships",
                        to="bank.account",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="memberships",
                        to="bank.clusteruser",
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=check_constraint(
                models.Q(
                    ("end_date__isnull", True),
                    ("end_date__gte", models.F("start_date")),
                    _connector="OR",
                ),
                "bank_allocation_period",
            ),
        ),
        migrations.AddConstraint(
            model_name="allocationuser",
            constraint=models.UniqueConstraint(
                fields=("allocation", "user"), name="bank_allocation_user_once"
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(fields=["startdate", "id"], name="bank_job_start"),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(fields=["account", "startdate"], name="bank_job_account_start"),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(fields=["user", "startdate"], name="bank_job_user_start"),
        ),
        migrations.AddIndex(
            model_name="entry",
            index=models.Index(fields=["allocation", "user"], name="bank_entry_allocation_user"),
        ),
        migrations.AddConstraint(
            model_name="entry",
            constraint=check_constraint(
                models.Q(
                    models.Q(("amount_csu__gt", 0), ("kind", "deposit")),
                    models.Q(("amount_csu__lt", 0), ("kind__in", ["withdrawal", "charge"])),
                    models.Q(("kind", "adjustment"), models.Q(("amount_csu", 0), _negated=True)),
                    _connector="OR",
                ),
                "bank_entry_sign",
            ),
        ),
        migrations.AddConstraint(
            model_name="entry",
            constraint=check_constraint(
                models.Q(
                    models.Q(("job__isnull", True), ("kind__in", ["deposit", "withdrawal"])),
                    ("kind", "adjustment"),
                    models.Q(("job__isnull", False), ("kind", "charge"), ("user__isnull", False)),
                    _connector="OR",
                ),
                "bank_entry_subject",
            ),
        ),
        migrations.AddConstraint(
            model_name="membership",
            constraint=models.UniqueConstraint(
                fields=("account", "user"), name="bank_membership_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="membership",
            constraint=check_constraint(
                models.Q(("limit_csu__isnull", True), ("limit_csu__gte", 0), _connector="OR"),
                "bank_membership_limit",
            ),
        ),
    ]
