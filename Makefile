# make demo   build, serve, validate, document and publish a real release on this machine
# make test   lint, type-check and test everything, with real container engines and a real registry
# make quick  the quick tests only: no network, no processes

PYTHON ?= python3
VENV := .venv
CELL := --chip cpu --model tiny-qwq

.PHONY: demo test quick lint golden schemas clean

demo: $(VENV)/.demo
	@if $(VENV)/bin/release plan $(CELL) | grep -q '^0 stages would run'; then $(VENV)/bin/release build $(CELL); \
	else .ci/with-engine $(VENV)/bin/release build $(CELL); fi

test: $(VENV)/.test lint
	@.ci/install docker.io docker-registry podman skopeo chromium openssh-server busybox-static
	@.ci/with-engine .ci/tests $(VENV)

quick: $(VENV)/.test
	@$(VENV)/bin/pytest -m "not integration and not engine"

lint: $(VENV)/.test
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@.ci/types $(VENV)

golden: $(VENV)/.test
	@$(VENV)/bin/pytest -q tests/templates tests/builders tests/publish --golden

schemas: $(VENV)/.test
	@$(VENV)/bin/release matrix schema --into matrix/schemas

$(VENV)/.demo: pyproject.toml .ci/constraints.txt
	@.ci/environment $(PYTHON) $(VENV) .
	@touch $@

$(VENV)/.test: pyproject.toml .ci/constraints.txt
	@.ci/environment $(PYTHON) $(VENV) ".[test]"
	@touch $@ $(VENV)/.demo

clean:
	@rm -rf $(VENV) build dist pulled *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
