# One command each; every environment is made on the way, from hash-locked requirements.
#
#   make demo    .venv: the locked run-time packages and calibrator; ARGS="--once" goes to the command
#   make test    .venv-test: the locked development packages and the built wheel; lint first, then every test
#   make test-long   the long forms of some of them
#   make soak    a quarter of an hour of a whole service with pollers and faults: nothing may grow
#   make image-test   build deploy/Dockerfile and run it, as root, with buildah and debootstrap; minutes
#   make programs   install the system programs that tests need, or say how; part of `make test`
#   make lint    the static half of `make test`
#   make audit   known vulnerabilities and licences of the run-time packages; part of `make test`
#   make bench   measurements of the program itself; numbers, not verdicts
#   make bench-generator   the load generator beside its peers, which it installs; half an hour
#   make test-ray   the load generator on a real local Ray, in an environment with the extra; two minutes
#   make setup   .venv for development: calibrator in editable form and all tools
#   make docs    write the generated parts of the documentation
#   make pictures   draw its curve and photograph its page, with Chromium; a minute
#   make chart   write the generated parts of the Helm chart: copies of alerts and dashboards, table, schema of `config`
#   make lock    resolve requirements/ anew
#
# Stamp files inside the environments make a second run instant. pip is told -qq: it still prints its errors.

.SHELLFLAGS := -euc
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# One goal after the other, whatever -j says: the tests use every core by themselves.
.NOTPARALLEL:
.PHONY: audit help demo setup programs test test-long soak image-test lint bench bench-generator test-ray docs pictures chart lock clean

IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
CANDIDATES := python3 python3.13 python3.12 python3.11
PYTHON ?= $(shell for p in $(CANDIDATES); do if $$p -c '$(IS_NEW_ENOUGH)' 2>/dev/null; then echo $$p; break; fi; done)
PIP_INSTALL := -m pip install -qq --disable-pip-version-check
LOCKED := $(PIP_INSTALL) --require-hashes
SOURCES := $(shell find calibrator -not -path '*/__pycache__*' 2>/dev/null) # folders too: a deleted file changes its folder
BUILD_INPUTS := pyproject.toml README.md LICENSE
ARGS ?=
UPGRADE ?= --upgrade

help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile

demo: .venv/.runtime
	@exec .venv/bin/calibrator demo $(ARGS)

setup: .venv/.runtime .venv/.dev

# An interpreter that was named on the command line is the caller's matter; `%/.python` looks at it.
programs:
	@tests/support/system_programs.sh $(if $(filter file,$(origin PYTHON)),$(CANDIDATES))

# Two parts, and the second runs whatever the first says. What measures real time runs alone; everything else three files
# at a time, in the order of the folders: programs that are waited for, and virtual time, keep two cores busy together.
REAL_TIME := tests/load/test_selftest.py tests/load/test_starvation.py tests/e2e/test_replicas.py \
  $(wildcard tests/e2e/test_*_over_http.py tests/e2e/test_llamacpp_*.py)
# Tests give programs a network of their own and mount small disks: root may, and others may in a user namespace.
NAMESPACE := unshare --user --mount --map-current-user --keep-caps
AS_ROOT_MAY = $(shell [ "$$(id -u)" = 0 ] || ! $(NAMESPACE) true 2>/dev/null || echo "$(NAMESPACE)")
PYTEST = $(AS_ROOT_MAY) env TESTS_OF_THE_WHEEL=1 TESTS_REQUIRE_ENGINE=1 PYTHONSAFEPATH=1 .venv-test/bin/python -m pytest

test: programs lint audit .venv-test/.wheel .venv-litellm/.wheel
ifeq ($(ARGS),)
	failed=0; \
	$(PYTEST) --durations=20 --numprocesses=3 --dist=loadfile --no-loadscope-reorder $(addprefix --ignore=,$(REAL_TIME)) \
	  || failed=$$?; \
	$(PYTEST) --durations=10 $(REAL_TIME) || failed=$$?; \
	exit $$failed
else
	$(PYTEST) --durations=15 $(ARGS)
endif

test-long: programs .venv-test/.wheel
	$(PYTEST) -m long -s $(ARGS)

soak: programs .venv-test/.wheel
	export SOAK_S=$${SOAK_S:-900}; $(PYTEST) tests/soak -s $(ARGS)

image-test: programs .venv-test/.wheel
	$(PYTEST) tests/image -m image -s $(ARGS)

lint: .venv-test/.dev
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	MYPYPATH=tests .venv-test/bin/mypy -p calibrator -p support -m generate_docs -m generate_chart -m generate_pictures
	.venv-test/bin/lint-imports

audit: .venv-test/.dev
	@PYTHONPATH=tests .venv-test/bin/python -m support.audit

bench: .venv-test/.wheel
	PYTHONSAFEPATH=1 .venv-test/bin/python -m pytest tests/benchmarks -o python_files='bench_*.py' -s $(ARGS)

bench-generator: .venv/.runtime
	.venv/bin/python tests/benchmarks/bench_generator.py $(ARGS)

test-ray: .venv-ray/.ray
	.venv-ray/bin/python -m pytest tests/benchmarks/ray_workers.py -s $(ARGS)

docs: .venv/.runtime
	PYTHONPATH=tests .venv/bin/python deploy/docs/generate_docs.py

pictures: programs .venv/.runtime .venv/.dev
	PYTHONPATH=tests .venv/bin/python deploy/docs/pictures/generate_pictures.py

chart: .venv/.runtime
	.venv/bin/python helm/calibrator/generate_chart.py

# uv resolves for every platform at once, which pip cannot; it lives in an environment that is thrown away.
# No index address may get into the files: the locks work with whatever index a machine is set up for.
# Extras stay in the names: without them pip before 23.3 looks for the newest of a package asked for with an extra, and
# refuses it, as soon as there is a newer one than the locked.
COMPILE := uv pip compile --quiet $(UPGRADE) --no-strip-extras --generate-hashes --universal --python-version 3.11 \
  --no-emit-index-url --no-emit-find-links --no-header --no-annotate
# Each of those stands there without its extras, too: a package that asks for it plainly would get the newest otherwise.
PLAIN_TOO := awk '/^[^ ]+\[/ { plain = $$0; sub(/\[[^]]*\]/, "", plain); more = more plain "\n"; on = 1; print; next } \
  on && /^ / { more = more $$0 "\n"; print; next } { on = 0; print } END { printf "%s", more }'
lock:
	scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(PYTHON) -m venv "$$scratch/venv"; "$$scratch/venv/bin/python" $(PIP_INSTALL) uv; \
	PATH="$$scratch/venv/bin:$$PATH"; \
	$(COMPILE) --group build --output-file requirements/build.txt; \
	$(COMPILE) pyproject.toml --output-file requirements/runtime.txt; \
	$(COMPILE) pyproject.toml --extra otel --constraint requirements/runtime.txt --output-file requirements/image.txt; \
	$(COMPILE) pyproject.toml --group dev --constraint requirements/image.txt --constraint requirements/build.txt \
	  --output-file requirements/dev.txt; \
	echo 'litellm[proxy]==1.106.2' | $(COMPILE) --output-file requirements/litellm.txt -; \
	for name in runtime dev litellm; do \
	  $(PLAIN_TOO) requirements/$$name.txt > "$$scratch/both.txt"; cp "$$scratch/both.txt" requirements/$$name.txt; \
	done

clean:
	rm -rf .venv .venv-test .venv-ray .venv-litellm build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# ------------------------------------------------------------------------------------------------------ environments

%/.python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "calibrator needs Python 3.11 or newer; none of $(CANDIDATES) is." >&2; \
	  echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@if ! $(PYTHON) -c '$(IS_NEW_ENOUGH)'; then \
	  echo "$(PYTHON) is older than Python 3.11 or does not run. Name another: PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$(PYTHON) cannot make virtual environments." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv; elsewhere install Python with ensurepip." >&2; exit 2; fi
	@echo "Making $(@D) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(@D)
	@touch $@

.venv/.runtime: requirements/runtime.txt requirements/build.txt pyproject.toml | .venv/.python
	@echo "Installing the locked run-time packages (once) ..."
	@.venv/bin/python $(LOCKED) -r requirements/runtime.txt -r requirements/build.txt
	@.venv/bin/python $(PIP_INSTALL) --no-deps --no-index --no-build-isolation --editable .
	@touch $@

.venv/.dev .venv-test/.dev .venv-ray/.dev: %/.dev: requirements/dev.txt | %/.python
	@echo "Installing the locked development packages (once) ..."
	@$(@D)/bin/python $(LOCKED) -r requirements/dev.txt
	@touch $@

# Ray is not locked: the newest is what people install.
.venv-ray/.ray: pyproject.toml | .venv-ray/.dev
	@$(@D)/bin/python $(PIP_INSTALL) --no-build-isolation --editable '.[ray]'
	@touch $@

# The source archive is built first and the wheel from it: what the archive lacks, the tests miss.
.venv-test/.wheel: $(SOURCES) $(BUILD_INPUTS) | .venv-test/.dev
	@echo "Building and installing the wheel ..."
	@rm -rf dist
	@.venv-test/bin/python -m build --no-isolation --outdir dist . > .venv-test/build.log 2>&1 \
	  || { cat .venv-test/build.log >&2; exit 1; }
	@.venv-test/bin/python $(PIP_INSTALL) --no-deps --no-index --force-reinstall dist/*.whl
	@touch $@

# The real LiteLLM proxy, which tests start: an environment of its own, as its users have one. 85 seconds.
.venv-litellm/.locked: requirements/litellm.txt | .venv-litellm/.python
	@echo "Installing LiteLLM (once) ..."
	@$(@D)/bin/python $(LOCKED) -r requirements/litellm.txt
	@touch $@

.venv-litellm/.wheel: .venv-test/.wheel | .venv-litellm/.locked
	@$(@D)/bin/python $(PIP_INSTALL) --no-deps --no-index --force-reinstall dist/*.whl
	@touch $@
