# make demo    renders the built-in scene on the built-in model
# make test    runs the tests
# make gallery renders every scene of examples/ into docs/gallery (ARGS="NAME": one of them)
# Each sets up .venv first. PYTHON and TORCH choose the interpreter and the build of PyTorch:
#     make demo PYTHON=python3.12 TORCH="torch==2.13.0 --index-url URL"
PYTHON ?= python3
TORCH ?= torch==2.13.0
OUT ?= out/demo
ARGS ?=

PY := .venv/bin/python

.PHONY: demo test test-pydantic1 gallery lint bench clean

demo: .venv/ready
	$(PY) -m lib_masknoise demo --out $(OUT) $(ARGS)

test: .venv/ready-for-tests
	$(PY) -m pytest $(ARGS)

# A1111 has pydantic 1 and a fastapi of its time; the tests above run with today's.
test-pydantic1: .venv/ready-for-tests
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade --target .venv/pydantic1 \
		'pydantic<2' 'fastapi==0.94.*' 'httpx<0.28'
	PYTHONPATH=.venv/pydantic1 $(PY) -m pytest $(addprefix tests/unit/test_,$(addsuffix .py,\
		scene controls presets infotext preview api)) $(ARGS)

lint: .venv/ready-for-tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: .venv/ready
	for name in attention overhead fields animation_memory; do $(PY) -m bench.$$name || exit 1; done

gallery: .venv/ready
	$(PY) -m tools.gallery $(ARGS)

clean:
	rm -rf .venv out

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[cli]'
	touch $@

.venv/ready-for-tests: .venv/ready
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[cli,distributed,test]'
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps stable-diffusion-sdkit==2.1.5
	touch $@
