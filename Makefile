.PHONY: locks
locks: ## Lock every dependency group with hashes.
	@for group in common ingestion resolution funds scheduler local dev; do \
		.venv/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --group $$group -o requirements/$$group.lock; \
	done
