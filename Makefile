# Two commands matter: `make demo` and `make test`. Both make .venv from requirements.lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo servers test real-servers night check format lock clean train-tiny

demo: $(STAMP)  ## The whole loop on this machine; Ctrl-C ends it.
	@$(BIN)/icg demo $(ARGS)

servers: $(STAMP)  ## Apache Kafka, S3 and Redis on this machine, for tests and by hand; Ctrl-C ends them.
	@$(BIN)/python -m infra.servers $(ARGS)

# A file stays with one pytest worker, which shares its servers; files go out in their order, contract to unit, so that
# the long ones come first and the last minutes are filled with short ones. In CI a failed test is tried once more;
# how it failed is printed at the end all the same, because it is to be mended.
PYTEST = $(BIN)/python -m pytest -n $${TEST_WORKERS:-auto} --dist loadfile --no-loadscope-reorder $(if $(CI),--reruns 1)

test: $(STAMP)  ## Everything that CI runs.
	@$(MAKE) --no-print-directory --jobs 2 check $(if $(CI),real-servers)
	$(PYTEST) $(ARGS)

real-servers: $(STAMP)
	@$(BIN)/python -m infra.servers --install

night: $(STAMP)  ## What takes too long for every day: more planted bugs, longer runs of faults.
	$(PYTEST) -m night $(ARGS)

# icg-tiny from pictures to covers, each stage resumed by calling it again; --help of a stage says what else it takes.
TINY ?= $(HOME)/.cache/icg/tiny
EMOJI ?= ../shared/data/emoji/emoji_64.parquet
TRAIN = $(BIN)/icg train
OWN = --also model.vision_tower. --also model.multi_modal_projector.

train-tiny: $(STAMP)  ## Train icg-tiny into $(TINY): hours on a CPU, minutes on a GPU (DEVICE=cuda).
	$(TRAIN) autoencoder --data $(EMOJI) --folder $(TINY)/autoencoder --device $(or $(DEVICE),cpu)
	$(TRAIN) dual-encoder --data $(EMOJI) --folder $(TINY)/dual_encoder --autoencoder $(TINY)/autoencoder/model --device $(or $(DEVICE),cpu)
	test -e $(TINY)/choices.npz || $(BIN)/python -m icg.evaluation.study $(TINY)/choices.npz --data $(EMOJI)
	$(TRAIN) preference $(TINY)/choices.npz --data $(EMOJI) --folder $(TINY)/preference_a --half a --autoencoder $(TINY)/autoencoder/model --device $(or $(DEVICE),cpu)
	$(TRAIN) preference $(TINY)/choices.npz --data $(EMOJI) --folder $(TINY)/preference_b --half b --autoencoder $(TINY)/autoencoder/model --device $(or $(DEVICE),cpu)
	$(TRAIN) base --data $(EMOJI) --folder $(TINY)/base --autoencoder $(TINY)/autoencoder/model --device $(or $(DEVICE),cpu)
	$(TRAIN) export $(TINY)/weights --stages $(TINY)
	test -e $(TINY)/model || $(BIN)/icg init tiny $(TINY)/model --weights $(TINY)/weights
	$(TRAIN) warmup $(TINY)/model $(EMOJI) $(TINY)/warmup $(OWN) --matching 0 --rate 5e-4 --device $(or $(DEVICE),cpu)
	$(TRAIN) liked $(TINY)/model $(EMOJI) $(TINY)/choices.npz $(TINY)/liked --start $(TINY)/warmup --device $(or $(DEVICE),cpu)
	$(TRAIN) rewards $(TINY)/model $(EMOJI) $(TINY)/choices.npz $(TINY)/rewards --start $(TINY)/warmup --branch 0.25 --rate 2e-3 --pull 0.1 --aesthetic 0 --device $(or $(DEVICE),cpu) --judge $(or $(JUDGE),$(TINY)/preference_b)
	$(TRAIN) export $(TINY)/shipped --stages $(TINY) --aligned $(TINY)/rewards
	cp icg/tiny/weights/sampler.json $(TINY)/shipped  # until `icg branch` says otherwise

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
