# `make demo` and `make test` need only Python 3.11; each installs what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
IMAGE ?= examples/images/chelsea.png
OUT ?= out
BUILD_DOCS := $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky -b html docs site

.PHONY: page page-snapshots demo test test-architectures test-callers test-engines engines caller-packages test-kernels chaos model-check live-alerts check protos client bench bench-engine bench-service bench-page bench-peers bench-isolation bench-kserve bench-bulk bench-idle bench-shards bench-backup soak bench-quality bench-audit bench-known-reasons bench-costs bench-concepts bench-models install format constraints clean help image chart reference docs pictures lock sbom release device device-report fuzz audit scan peers

help: ## Lists the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

# Reinstalls the environment if the project's requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Programs that the tests talk to. They have an environment of their own, because their dependencies differ.
$(VENV)-peers/.installed: tests/peers/requirements.txt
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check -r tests/peers/requirements.txt
	@touch $@

# Ray and Spark have a gigabyte of packages, so only `make test-engines` installs them.
$(VENV)-engines/.installed: pyproject.toml tests/engines/requirements.txt
	$(PYTHON) -m venv $(VENV)-engines
	$(VENV)-engines/bin/python -m pip install --quiet --disable-pip-version-check -r tests/engines/requirements.txt -e '.[ray,spark]'
	@touch $@

# Packages of the Node example. Without the npm registry its test is skipped.
NODE_CALLER := examples/callers/node/node_modules/.package-lock.json
$(NODE_CALLER): examples/callers/node/package-lock.json $(VENV)/.installed-dev
	-@$(BIN)/python scripts/npm.py examples/callers/node

peers: $(VENV)-peers/.installed ## Installs MLServer, KServe, an S3-compatible store and an older Valkey, which some tests need.

engines: $(VENV)-engines/.installed ## Installs Ray and Spark, which two tests need (1.1 GB).

install: $(VENV)/.installed-dev ## Creates .venv with everything.

demo: $(VENV)/.installed ## Explains an image (IMAGE=path) and writes the result to out/.
	@$(BIN)/sagittal demo "$(IMAGE)" -o "$(OUT)"

# The files with the longest tests come first in the tree and therefore start first. Fuzzing is split into two files, one for
# each process. The sources are compiled once, because the tests start many programs.
test: $(VENV)/.installed-dev $(VENV)-peers/.installed $(NODE_CALLER) ## Runs the whole test suite in JOBS (3) processes; a file's tests stay together.
	@$(BIN)/python -m compileall -q protos service workers clients
	$(BIN)/python -m pytest --numprocesses $(or $(JOBS),3) --dist loadfile --no-loadscope-reorder

test-architectures: $(VENV)/.installed-dev ## Runs every method on whole ResNet, MobileNet, ConvNeXt, ViT and Swin networks (a minute or more).
	SAGITTAL_TEST_WHOLE=yes $(BIN)/python -m pytest tests/unit/models/test_architectures.py

CALLER_PACKAGES := golang-go golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev protoc-gen-go protoc-gen-go-grpc \
  default-jdk-headless protobuf-compiler protobuf-compiler-grpc-java-plugin libgrpc-java libnetty-java libperfmark-java
caller-packages: ## Lists the packages of Debian that the callers in Go and Java need.
	@echo $(CALLER_PACKAGES)

test-callers: $(VENV)/.installed-dev $(NODE_CALLER) ## Runs the callers in Node, Go and Java against a service (a minute).
	SAGITTAL_TEST_CALLERS=yes $(BIN)/python -m pytest tests/packaging/test_callers.py

test-engines: $(VENV)/.installed-dev $(VENV)-engines/.installed ## Explains data sets by Ray and by Spark (a minute; Spark needs Java 17).
	$(BIN)/python -m pytest tests/integration/service/test_engines.py

# Results of libraries depend on the processor. These settings simulate other processors.
ENGINE_TESTS := $(BIN)/python -m pytest --quiet tests/unit/engine tests/unit/models/test_loading.py tests/unit/models/test_row_equality.py
test-kernels: $(VENV)/.installed-dev ## Runs the engine's tests with the kernels of other processors (a minute).
	MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=1 $(ENGINE_TESTS)
	ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 $(ENGINE_TESTS)

fuzz: $(VENV)/.installed-dev ## Fuzzes for SECONDS (1200) each: every RPC, records in Redis, images, stored jobs and events, model files.
	PYTHONPATH=tests $(BIN)/python -m fuzzing --seconds $(or $(SECONDS),1200) --keep out/fuzzing

chaos: $(VENV)/.installed-dev ## Injects faults for SECONDS (600) and writes the figures to docs/guarantees.md.
	PYTHONPATH=tests $(BIN)/python -m chaos.main --seconds $(or $(SECONDS),600) --write docs/guarantees.md

model-check: $(VENV)/.installed-dev ## Checks the queue's promises for all interleavings within bounds and SCHEDULES (2000) random ones beyond.
	PYTHONPATH=tests $(BIN)/python -m queue_model --schedules $(or $(SCHEDULES),2000) --seed $(or $(SEED),1) --write docs/guarantees.md

live-alerts: $(VENV)/.installed-dev ## Injects 13 faults until a real Prometheus alerts, and writes the times to docs/runbooks (some minutes).
	PYTHONPATH=tests:benchmarks $(BIN)/python -m chaos.live_alerts --write docs/runbooks/index.md

check: $(VENV)/.installed-dev ## Runs every static check; with STRICT=yes, checks that cannot run here fail.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/terms.py
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code protos
	@if git rev-parse --quiet --verify main > /dev/null; then echo buf breaking; $(BIN)/buf breaking --against '.git#branch=main'; fi
	scripts/protos.sh --check $(BIN)
	$(BIN)/python scripts/sync_client.py --check
	$(BIN)/python scripts/page.py --check $(if $(filter yes,$(STRICT)),--strict)
	$(BIN)/python scripts/chart_docs.py --check
	$(BIN)/python scripts/reference_docs.py --check
	$(BIN)/python scripts/api_docs.py --check
	$(BUILD_DOCS)
	$(BIN)/python scripts/helm.py lint --strict --quiet helm/sagittal
	$(BIN)/python scripts/audit.py $(if $(filter yes,$(STRICT)),--strict)
	$(MAKE) scan STRICT=$(STRICT)

page: $(VENV)/.installed-dev ## Builds the page that sagittal-page serves; Node comes with the environment.
	$(BIN)/python scripts/page.py

protos: $(VENV)/.installed-dev ## Generates the Python modules beside the .proto files.
	scripts/protos.sh $(BIN)

client: $(VENV)/.installed-dev ## Generates the sync client from the asyncio client.
	$(BIN)/python scripts/sync_client.py

format: $(VENV)/.installed-dev ## Formats everything.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w protos

bench: $(VENV)/.installed-dev ## Measures I-GOS and iGOS++ on the shipped images and writes docs/benchmarks.md.
	$(BIN)/python benchmarks/explanations.py --write docs/benchmarks.md

bench-costs: $(VENV)/.installed-dev ## Measures what each method costs and writes docs/methods.md (some minutes).
	$(BIN)/python benchmarks/costs.py --write docs/methods.md

bench-concepts: $(VENV)/.installed-dev ## Compares concept sets with PCA, NMF and an autoencoder and writes docs/concepts.md.
	$(BIN)/python benchmarks/concepts.py --write docs/concepts.md

bench-models: $(VENV)/.installed-dev ## Measures the accuracy of EfficientNet-Lite0 to 2 on PICTURES and writes docs/models.md.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[models]'
	SAGITTAL_BENCHMARK_IMAGES=$(PICTURES) $(BIN)/python benchmarks/model_agreement.py --write docs/models.md

bench-quality: $(VENV)/.installed-dev ## Measures the quality of explanations and writes docs/quality.md (IMAGES=n, ARGS=--quick).
	cd benchmarks && ../$(BIN)/python -m quality --images $(or $(IMAGES),42) --write ../docs/quality.md $(ARGS)

bench-audit: $(VENV)/.installed-dev ## Audits networks with and without planted cues and writes docs/audit.md (MINUTES=n).
	$(BIN)/python benchmarks/audit.py --minutes $(or $(MINUTES),15) --write docs/audit.md

bench-known-reasons: $(VENV)/.installed-dev ## Explains networks whose reasons are known and writes docs/known-reasons.md (IMAGES=n, NETWORKS=n).
	cd benchmarks && ../$(BIN)/python -m known_reasons --images $(or $(IMAGES),12) --networks $(or $(NETWORKS),1) --write ../docs/known-reasons.md
	cd benchmarks && ../$(BIN)/python -m known_reasons.concept_sets --networks $(or $(NETWORKS),1) --write ../docs/known-reasons.md

# checkov has an environment of its own, because its dependencies conflict with ours.
$(VENV)-scan/.installed:
	$(PYTHON) -m venv $(VENV)-scan
	$(VENV)-scan/bin/python -m pip install --quiet --disable-pip-version-check checkov==3.3.30
	@touch $@

scan: $(VENV)/.installed-dev $(VENV)-scan/.installed ## Scans the rendered chart and the Dockerfile for security problems.
	BIN=$(BIN) STRICT=$(STRICT) scripts/scan.sh $(VENV)-scan/bin/checkov

audit: $(VENV)/.installed-dev ## Looks up known vulnerabilities of installed packages; fails if it cannot.
	$(BIN)/python scripts/audit.py --strict

image: $(VENV)/.installed-dev ## Builds both images (COMPUTE=cpu, cuda or none; EXTRAS=yes) and explains an image with them.
	BIN=$(BIN) EXTRAS=$(EXTRAS) STRICT=$(STRICT) scripts/image.sh $(or $(COMPUTE),cuda)

chart: $(VENV)/.installed-dev ## Generates the chart's README and schema, and lints the chart with every ci file.
	$(BIN)/python scripts/chart_docs.py
	@for values in helm/sagittal/ci/*; do $(BIN)/python scripts/helm.py lint --strict --quiet --values $$values helm/sagittal || exit 1; done

reference: $(VENV)/.installed-dev ## Generates the tables of metrics and settings and the API reference in docs/.
	$(BIN)/python scripts/reference_docs.py
	$(BIN)/python scripts/api_docs.py

docs: $(VENV)/.installed-dev ## Builds the documentation as a site in site/; every warning is an error.
	$(BUILD_DOCS)

pictures: $(VENV)/.installed-dev ## Draws docs/images with the real model.
	$(BIN)/python scripts/method_pictures.py

# It needs no other target: it installs from the lock files, on a machine with a card.
device: ## Tests and measures on a GPU for MINUTES (7) at most, into FOLDER; a second run continues (DEVICE=cpu tries it out).
	FOLDER="$(FOLDER)" MINUTES="$(MINUTES)" DEVICE="$(DEVICE)" DEVICE_PYTHON="$(DEVICE_PYTHON)" PYTHON="$(PYTHON)" scripts/device.sh

device-report: $(VENV)/.installed-dev ## Writes FOLDER's results to docs/performance.md and docs/methods.md, at PRICE per GPU hour.
	$(BIN)/python benchmarks/device/report.py --results "$(FOLDER)" --price $(or $(PRICE),0) --write docs/performance.md --methods docs/methods.md

release: $(VENV)/.installed-dev ## Writes wheel, sdist, chart, notes and checksums of VERSION (or `unreleased`) to dist/, built twice and compared.
	BIN=$(BIN) scripts/release.sh "$(VERSION)"

sbom: ## Writes dist/sbom-*.cdx.json: the packages in each image, in CycloneDX.
	PYTHON=$(PYTHON) scripts/sbom.sh

lock: ## Updates deploy/requirements-*.txt, which the images install, from pyproject.toml and constraints.txt.
	PYTHON=$(PYTHON) scripts/lock.sh

# Packages for the comparison, installed outside the environment; they use its torch.
.cache/peers/.installed: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .cache/peers grad-cam==1.5.7 ttach==0.0.3 \
	  opencv-python-headless==5.0.0.93 tqdm==4.70.1 scikit-learn==1.9.1 scipy==1.17.1 joblib==1.6.0 threadpoolctl==3.8.0 cloudpickle narwhals
	@touch $@

bench-peers: .cache/peers/.installed ## Compares with captum, grad-cam and the published RISE, in docs/performance.md.
	$(BIN)/python benchmarks/peers.py --peers .cache/peers --write docs/performance.md

bench-kserve: $(VENV)/.installed-dev $(VENV)-peers/.installed ## Measures predictions at MLServer beside explanations and writes docs/kserve.md.
	$(BIN)/python benchmarks/kserve.py --limits 1x1 --write docs/kserve.md

bench-service: $(VENV)/.installed-dev ## Measures the service and its overhead, and writes their parts of docs/performance.md.
	$(BIN)/python benchmarks/service.py --write docs/performance.md
	$(BIN)/python benchmarks/waiting.py --write docs/performance.md

page-snapshots: $(VENV)/.installed-dev ## Photographs the page in ten states, at three widths, in both themes: FOLDER=path, DOCS=yes for docs/page.md.
	$(BIN)/python scripts/page_snapshots.py $(or $(FOLDER),out/page) $(if $(filter yes,$(DOCS)),--docs)

bench-page: $(VENV)/.installed-dev ## Measures events through the page and its drawing: docs/performance.md, docs/page.md.
	$(BIN)/python benchmarks/page_overhead.py --write docs/performance.md
	$(BIN)/python benchmarks/page_drawing.py --write docs/page.md

bench-isolation: $(VENV)/.installed-dev ## Measures the effect of twelve floods by one tenant on another and writes it to docs/performance.md.
	$(BIN)/python benchmarks/isolation.py --write docs/performance.md

bench-bulk: $(VENV)/.installed-dev ## Runs a batch of 10,000 images whose parts are killed and writes it to docs/performance.md (five minutes).
	$(BIN)/python benchmarks/bulk.py --write docs/performance.md
	$(BIN)/python benchmarks/estimates.py --write docs/performance.md

bench-shards: $(VENV)/.installed-dev ## Measures what two servers carry beside one and writes it to docs/performance.md.
	$(BIN)/python benchmarks/shards.py --write docs/performance.md

bench-idle: $(VENV)/.installed-dev ## Measures what an idle worker costs Redis and writes it to docs/performance.md.
	$(BIN)/python benchmarks/idle.py --write docs/performance.md

bench-backup: $(VENV)/.installed-dev ## Measures how long a backup and its restoration take and writes it to docs/operations.md.
	$(BIN)/python benchmarks/backup.py --write docs/operations.md

soak: $(VENV)/.installed-dev ## Runs 20,000 small jobs and writes their memory use to docs/performance.md.
	$(BIN)/python benchmarks/soak.py --write docs/performance.md

bench-engine: $(VENV)/.installed-dev ## Measures the engine against the bare model and writes docs/performance.md.
	$(BIN)/python benchmarks/engine.py --write docs/performance.md
	$(BIN)/python benchmarks/optimised.py --write docs/performance.md
	$(BIN)/python benchmarks/memory.py --write docs/performance.md

constraints: ## Updates constraints.txt to the versions that pip resolves today.
	rm -rf $(VENV)-fresh && $(PYTHON) -m venv $(VENV)-fresh
	$(VENV)-fresh/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	(echo "# The versions that the demo, the tests and the images run with. Made with 'make constraints'."; \
	  $(VENV)-fresh/bin/python -m pip freeze --exclude-editable | grep -vE '^(nvidia-|cuda-|triton)') > constraints.txt
	rm -rf $(VENV)-fresh

clean: ## Removes the environments and all generated files.
	rm -rf $(VENV) $(VENV)-fresh $(VENV)-peers $(VENV)-engines $(VENV)-scan $(OUT) dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
