# SPDX-License-Identifier: BSD-3-Clause
#
#   make demo       everything from a fresh Debian: install, build, a real cluster, a walk through it     (root)
#   make test       everything from a fresh Debian: all tests                                            (root)
#
#   make setup      install what building, clusters and tests need (packages; a virtual environment in .venv)
#   make plugins    the three plugins, against SLURM_SRC= or the source package of the installed Slurm
#   make install    plugins, Python packages, command and units (DESTDIR= PLUGINDIR= SPANKDIR= LIBDIR= ...)
#   make uninstall
#   make cluster    a cluster with everything in it that stays up to play with; make cluster-stop ends it
#   make check      unit, property, server and plugin tests                       make live   the real cluster
#   make client     generate mybrc_client from spec/mybrc.openapi.yaml            make lint   ruff, mypy, shellcheck
#   make sanitize   the plugins under sanitizers and valgrind: all their tests, a million hostile calls (CALLS= SEED=)   (root)
#   make bench      the budgets of docs/architecture.md, measured
#   make fidelity   estimates and charges against Slurm itself, over 2,000 random jobs (SEED= JOBS=)           (root)
#   make reconcile  3,000 runs of every kind, 200 injuries to the books: found, named, repaired (SEED=)         (root)
#   make faults     the money of a cluster that is broken again and again under load (SEED= SCHEDULES=)        (root)

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
PYTEST := $(VENV_PYTHON) -m pytest
# Fast tests mostly wait; the live ones want the machine to themselves.
PARALLEL := -n 2 --dist loadfile
SETUP_STAMP := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup plugins install uninstall cluster cluster-stop demo check live test client client-check lint sanitize bench fidelity reconcile faults clean

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@docker/install-debian.sh
	@$(MAKE) --no-print-directory $(SETUP_STAMP)

# The environment of the tests and of the bundled bank; what runs on a controller uses the system's Python alone.
$(SETUP_STAMP): pyproject.toml
	@echo "setup: virtual environment in $(VENV)"
	@[ -x $(VENV_PYTHON) ] || /usr/bin/python3 -m venv $(VENV)
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[server,dev]'
	@touch $@

plugins install uninstall:
	@$(MAKE) --no-print-directory -C csrc $@

cluster: setup
	@$(VENV_PYTHON) -m tests.rig.demo cluster

cluster-stop:
	@$(VENV_PYTHON) -m tests.rig.cluster down --left

demo: setup
	@$(VENV_PYTHON) -m tests.rig.demo

check: setup client-check
	$(PYTEST) $(PARALLEL) tests/unit tests/server tests/plugins tests/sanitize $(PYTEST_ARGS)

live: setup
	$(PYTEST) tests/live tests/rig tests/fidelity tests/reconcile tests/faults $(PYTEST_ARGS)

test: check live

client:
	spec/generate.sh

client-check:
	@spec/generate.sh --check

lint:
	$(VENV)/bin/ruff check slurm_banking tests csrc
	$(VENV)/bin/mypy
	shellcheck docker/*.sh spec/*.sh csrc/*.sh .ci/run

sanitize: setup
	BANKING_SANITIZE=1 $(PYTEST) tests/plugins $(PYTEST_ARGS)
	BANKING_THOROUGH=1 BANKING_FUZZ_CALLS=$(or $(CALLS),1000000) $(if $(SEED),BANKING_FUZZ_SEED=$(SEED)) \
		$(PYTEST) -s tests/sanitize $(PYTEST_ARGS)

bench: setup
	@$(VENV_PYTHON) -m tests.bench

fidelity: setup
	@$(VENV_PYTHON) -m tests.fidelity $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS))

reconcile: setup
	@$(VENV_PYTHON) -m tests.reconcile $(if $(SEED),--seed $(SEED))

faults: setup
	@$(VENV_PYTHON) -m tests.faults $(if $(SEED),--seed $(SEED)) $(if $(SCHEDULES),--schedules $(SCHEDULES))

clean:
	rm -rf build
