# `make demo` and `make test` set themselves up: a virtual environment with the pinned requirements.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# large pages: half of a small step's time on a CPU goes into fresh memory (glibc 2.35 and newer; others ignore it)
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1

.PHONY: demo demo_base test lint parity soak

demo: $(VENV)/installed
	$(RUN) -m mmaudio_jax.demo

# The demo's base, from nothing, and its scores; killed and started again, it goes on with the step that it was in.
# VARIANT=no_sync and VARIANT=unaligned train without one part, for the table of ablations in docs/demo.md.
# The whole one is what lies in mmaudio_jax/demo/base:
#   python -m mmaudio_jax.merge demo_base/runs/whole --out mmaudio_jax/demo/base
B := demo_base
VARIANT ?= whole
SCORES := $(B)/$(VARIANT).json
PART := part-00000-of-00001# of a feature set: it comes to its place when it is whole
STAND_INS := $(B)/weights/bigvgan_16k# the last of those that are written
SCRATCH := $(B)/weights/scratch$(if $(filter unaligned,$(VARIANT)),_unaligned)
ifeq ($(filter $(VARIANT),whole no_sync unaligned),)
$(error VARIANT is whole, no_sync or unaligned)
endif

demo_base: $(SCORES)

$(STAND_INS): | $(VENV)/installed
	$(RUN) -m mmaudio_jax.demo.stand_ins --out $(B)/weights

$(B)/clips/clips.tsv: | $(VENV)/installed
	$(RUN) -m mmaudio_jax.demo.render --count 1200 --seed 0 --materials wood metal drum --out $(B)/clips

$(B)/held_out/clips.tsv: | $(VENV)/installed
	$(RUN) -m mmaudio_jax.demo.render --count 128 --seed 11 --out $(B)/held_out

$(B)/features/%/$(PART): | $(B)/%/clips.tsv $(STAND_INS)
	$(RUN) -m mmaudio_jax.features --clips $(B)/$*/clips.tsv --root $(B)/$* --weights $(B)/weights --out $(@D)

$(SCRATCH): $(B)/weights/scratch%: | $(B)/features/clips/$(PART)
	$(RUN) -m mmaudio_jax.initialize --model demo_16k$* --data $(B)/features/clips --weights $(B)/weights --out $@

$(B)/weights/$(VARIANT): | $(SCRATCH)
	$(RUN) train.py --config configs/demo_base.py:$(VARIANT) --workdir $(B)/runs/$(VARIANT)
	$(RUN) -m mmaudio_jax.merge $(B)/runs/$(VARIANT) --out $@

$(SCORES): | $(B)/weights/$(VARIANT) $(B)/features/held_out/$(PART)
	$(RUN) -m mmaudio_jax.demo.evaluate --weights $(B)/weights --model $(VARIANT) --data $(B)/features/held_out \
	    --scenes $(B)/held_out/scenes.json $(if $(filter no_sync,$(VARIANT)),--without_sync) --out $@

test: lint
	$(RUN) -m pytest -m "not parity" -n 2 --dist loadfile

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# Every released network at full size against the golden vectors: ten minutes on two cores.
parity: $(VENV)/installed
	$(RUN) -m pytest -m parity tests/parity

# A small training run, a small preparation, a small extraction and a batch of sounds, killed again and again at random
# moments, against ones that were not.
soak: $(VENV)/installed
	$(RUN) tests/soak.py
	$(RUN) tests/soak_prepare.py
	$(RUN) tests/soak_features.py
	$(RUN) tests/soak_generation.py

$(VENV)/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
