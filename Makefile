# Two commands matter: `make demo` and `make test`. Both make .venv from requirements.lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo servers test check format lock clean

demo: $(STAMP)  ## The whole loop on this machine; Ctrl-C ends it.
	@$(BIN)/icg demo $(ARGS)

servers: $(STAMP)  ## Apache Kafka, S3 and Redis on this machine, for tests and by hand; Ctrl-C ends them.
	@$(BIN)/python -m infra.servers $(ARGS)

test: $(STAMP) check  ## Everything that CI runs.
	@test -z "$$CI" || $(BIN)/python -m infra.servers --install
	$(BIN)/python -m pytest -n $${TEST_WORKERS:-2} --dist loadfile $(ARGS)

check: $(STAMP)  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

COMPILE := uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 \
    --no-emit-index-url --no-emit-find-links --no-header

lock:  ## After a change of dependencies; UPGRADE=--upgrade takes the newest of all the others, too.
	$(COMPILE) --extra dev $(UPGRADE) -o requirements.lock
	$(COMPILE) --no-annotate --constraint requirements.lock --extra api --extra audit --extra preferences \
	    --extra tracing -o infra/docker/services.lock
	$(COMPILE) --no-annotate --constraint requirements.lock --extra covers --extra tracing \
	    -o infra/docker/covers.lock

$(STAMP): requirements.lock pyproject.toml infra/install.sh
	@infra/install.sh $(PYTHON) $(VENV) "$(TORCH_BACKEND)"
	@touch $@

clean:
	rm -rf $(VENV) demo
