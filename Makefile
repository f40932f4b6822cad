# Needs git, make and Python 3.11 or newer; the first target makes .venv.
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-goods bench bench-replicas compare check types fast-one fast-two test mutants docs transcript golden locks
N ?= 100000
KIND ?= cash
CASE ?= plain

run := .venv/bin/python -m
# Some machines forbid it everywhere; here a thousand short processes would each compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

help: ## What there is.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## Make or renew .venv from requirements/dev.lock.
	@./almoner --setup

demo: ## 10,000 people paid on a stack of its own, with what goes wrong in life; the last line is JSON.
	@./almoner demo

demo-goods: ## Rice, and cash through agencies, for 10,000 people each; the last line is JSON.
	@./almoner demo-goods

bench: ## Measure N disbursements (N=100000; KIND=cash or goods) on a stack of its own; the last line is JSON.
	@./almoner bench $(N) --kind $(KIND)

bench-replicas: N = 4000
bench-replicas: ## Two replicas against one, with simulators that answer after 200 ms; the last line is JSON.
	@./almoner bench $(N) --replicas

compare: N = 1000
compare: setup ## Measure N disbursements through a G2P Bridge (N=1000; CASE as in docs/compare.md); the last line is JSON.
	@$(run) docs.compare.bridge $(N) --case $(CASE)

check: setup ## Style, types, import rules, fast tests (generated files among them): under a minute.
	.venv/bin/ruff check --quiet
	.venv/bin/ruff format --check --quiet
	.venv/bin/lint-imports --no-logo
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target types fast-two fast-one

types: setup
	$(run) mypy

# The fast tests in two parts, the longer one beside the types: two cores are busy to the end.
one := tests/unit/allocation tests/unit/common tests/unit/deploy
fast-one: setup
	$(run) pytest -q tests/contract tests/architecture $(one)

fast-two: setup
	$(run) pytest -q tests/unit $(one:%=--ignore=%)

test: setup ## Every test, on a real broker and a real database: under fifteen minutes.
	$(run) pytest tests -n 4 --dist loadgroup

mutants: setup ## Take away, one at a time, what makes "paid once" true: a test must notice each.
	$(run) tests.mutants

docs: setup ## Write the generated documents anew.
	$(run) libs.common.contracts.docs
	$(run) libs.cli.sheet
	$(run) libs.cli.settings
	$(run) deploy.grafana.dashboard

transcript: setup ## Write what the commands of docs/cli.md say anew, from a story on real services.
	ALMONER_WRITE_TRANSCRIPT=1 $(run) pytest -q -p no:randomly tests/integration/cli/test_transcript.py

golden: setup ## Keep the wire bytes of this release's events, so that later releases prove they still read them.
	$(run) tests.contract.golden

locks: setup ## Lock every dependency group with hashes.
	@for group in common ingestion resolution funds allocation scheduler notifications local dev; do \
		.venv/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --group $$group -o requirements/$$group.lock; \
	done
	@# Without a backport for Python 3.3, and without what psycopg2-binary stands for.
	@.venv/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-package asyncio \
		--no-emit-package psycopg2 requirements/bridge.in -o requirements/bridge.lock
