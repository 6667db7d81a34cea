# Everything runs in .venv beside this file; `make env` makes it, and every other target asks for it first.
#
#   make env      the environment (reused until requirements.txt, pyproject.toml or Python change)
#   make demo     studies -> ingest -> pre-train -> fine-tune -> evaluate -> infer -> report, in ./demo
#                 DICOM=/path/to/folder uses your own studies instead of generated ones
#   make test     the tests            make check    lint, format, types, architecture
#   make bundles  bundle configurations from bundles/_shared
#   make bench    the benchmarks that need no images
#   make clean    remove .venv

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env demo test check bundles bench clean

# The first interpreter that runs and is new enough; 3.11 first, because the pins were tested on it.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$name && break; done; true)
OUT ?= demo
BIN := .venv/bin
# Install the environment in MB; torch with CUDA libraries takes most of it.
ENV_MB := 6000

help:
	@sed -n 's/^#   //p' Makefile

env:
	@PYTHON='$(PYTHON)' ENV_MB='$(ENV_MB)' bash .ci/env

demo: env
	@$(BIN)/python -m lvmmed_monai demo --out '$(OUT)' $(if $(DICOM),--dicom '$(DICOM)')

test: env
	@$(BIN)/python -m pytest -n auto $(ARGS)

check: env
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m pytest tests/test_architecture.py tests/test_imports.py

bundles: env
	@$(BIN)/python -m lvmmed_monai bundles build

bench: env
	@for name in graph_matching pretrain pretrain_3d ingest; do echo "== $$name"; $(BIN)/python "benchmarks/$$name.py" || exit 1; done

clean:
	rm -rf .venv
