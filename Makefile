# make demo    renders the built-in scene on the built-in model
# make test    runs the tests
# make gallery renders every scene of examples/ into docs/gallery (ARGS="NAME": one of them), the views into docs/explore
# Each sets up .venv first. PYTHON and TORCH choose the interpreter and the build of PyTorch:
#     make demo PYTHON=python3.12 TORCH="torch==2.13.0 --index-url URL"
PYTHON ?= python3
TORCH ?= torch==2.13.0
OUT ?= out/demo
ARGS ?=

PY := .venv/bin/python

.PHONY: demo test test-pydantic1 test-browser gallery lint bench clean

demo: .venv/ready
	$(PY) -m lib_masknoise demo --out $(OUT) $(ARGS)

test: .venv/ready-for-tests
	$(PY) -m pytest $(ARGS)

# A1111 has pydantic 1 and a fastapi of its time; the tests above run with today's.
test-pydantic1: .venv/ready-for-tests
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade --target .venv/pydantic1 \
		'pydantic<2' 'fastapi==0.94.*' 'httpx<0.28'
	PYTHONPATH=.venv/pydantic1 $(PY) -m pytest $(addprefix tests/unit/test_,$(addsuffix .py,\
		scene controls presets infotext preview api from_python pictures)) $(ARGS)

# The painting canvas in Chromium, with A1111's gradio and with Forge's. Each lies in a folder of its own over the
# packages in .venv, with the versions of their time that it needs; CHROMIUM names another browser than `chromium`.
GRADIO3 := gradio==3.41.2 'fastapi<0.100' 'pydantic<2' 'numpy<2' 'Pillow<11' 'websockets<12'
GRADIO4 := gradio==4.40.0 'fastapi<0.113' 'pydantic<2.11' 'numpy<2' 'Pillow<11'
WITH_BOTH := 'httpx<0.28' 'markupsafe<3' 'huggingface_hub<1' 'transformers<5' 'diffusers<0.36' playwright pytest

test-browser: .venv/gradio3/ready .venv/gradio4/ready
	for name in gradio3 gradio4; do \
		REQUIRE_BROWSER=1 .venv/$$name/bin/python -m pytest tests/browser tests/unit/test_accordions.py $(ARGS) || exit 1; \
	done

.venv/gradio3/ready: PACKAGES = $(GRADIO3) $(WITH_BOTH)
.venv/gradio4/ready: PACKAGES = $(GRADIO4) $(WITH_BOTH)
.venv/gradio%/ready: .venv/ready-for-tests
	$(PY) -m venv $(@D)
	$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > .venv/packages.pth
	cp .venv/packages.pth $$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PACKAGES)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps axe-core-python
	touch $@

lint: .venv/ready-for-tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

bench: .venv/ready
	for name in attention overhead maps fields animation_memory explore; do $(PY) -m bench.$$name || exit 1; done

gallery: .venv/ready
	$(PY) -m tools.gallery $(ARGS)
	$(PY) -m tools.explore

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
