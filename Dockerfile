# Two images: `docker build --target service .` and `docker build --target worker --build-arg COMPUTE=cpu .`
# Both also have `sagittal-kserve`, the explainer for KServe; the worker's runs it without another Sagittal. See docs/kserve.md.
# Both run as user 65532 with a read-only root file system; they write only to /tmp and /data.

# Any image with Python 3.11, its venv module and CA certificates works. Release builds pin it by digest.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY deploy/requirements-build.txt deploy/
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --require-hashes --only-binary :all: -r deploy/requirements-build.txt \
 && python3 -m venv --without-pip /opt/sagittal

FROM build AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY service service
COPY workers workers
COPY clients clients
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# Sagittal's own code is a separate layer, so that an upgrade downloads only a few megabytes.
FROM build AS packages-service
COPY deploy/requirements-service.txt deploy/
RUN /opt/build/bin/pip --python /opt/sagittal/bin/python install --require-hashes --only-binary :all: \
      -r deploy/requirements-service.txt \
 && /opt/sagittal/bin/python -m compileall -q /opt/sagittal/lib

FROM packages-service AS build-service
COPY --from=wheel /wheels /wheels
RUN /opt/build/bin/pip --python /opt/sagittal/bin/python install --no-deps --no-index --prefix /opt/own /wheels/*.whl \
 && mkdir -p /opt/data/concepts

FROM build AS packages-worker
# `cuda`: torch from PyPI with NVIDIA's libraries, all pinned by hash. `cpu`: torch from TORCH_INDEX, pinned by version.
ARG COMPUTE=cuda
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY deploy/requirements-worker-${COMPUTE}.txt deploy/torch.txt deploy/
RUN if [ "${COMPUTE}" = cpu ]; then \
      /opt/build/bin/pip --python /opt/sagittal/bin/python install --no-deps --only-binary :all: \
        --index-url "${TORCH_INDEX}" -r deploy/torch.txt; \
    fi \
 && /opt/build/bin/pip --python /opt/sagittal/bin/python install --require-hashes --no-deps --only-binary :all: \
      -r "deploy/requirements-worker-${COMPUTE}.txt"
# `yes` adds timm, ONNX and the stores for weights.
ARG EXTRAS=no
COPY deploy/requirements-worker-extras.txt deploy/
RUN if [ "${EXTRAS}" = yes ]; then \
      /opt/build/bin/pip --python /opt/sagittal/bin/python install --require-hashes --no-deps --only-binary :all: \
        -r deploy/requirements-worker-extras.txt; \
    fi

FROM packages-worker AS build-worker
COPY --from=wheel /wheels /wheels
RUN /opt/build/bin/pip --python /opt/sagittal/bin/python install --no-deps --no-index --prefix /opt/own /wheels/*.whl \
 && mkdir -p /opt/data/concepts \
 && mkdir -m 700 /opt/data/cache

FROM ${PYTHON_IMAGE} AS runtime
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="Sagittal" \
      org.opencontainers.image.description="Explains image classifiers as a service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
ENV PATH=/opt/sagittal/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    SAGITTAL_LOG_FORMAT=json \
    SAGITTAL_KSERVE_LOG_FORMAT=json \
    SAGITTAL_METRICS_HOST=0.0.0.0
WORKDIR /
STOPSIGNAL SIGTERM

FROM runtime AS service
LABEL org.opencontainers.image.title="Sagittal service"
ENV SAGITTAL_LISTEN=0.0.0.0:50051
COPY --from=packages-service /opt/sagittal /opt/sagittal
COPY --from=build-service /opt/own /opt/sagittal
# A new volume mounted here takes its owner from this directory.
COPY --from=build-service --chown=65532:65532 /opt/data/ /data/
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
EXPOSE 50051 9090
USER 65532:65532
ENTRYPOINT ["sagittal-service"]

FROM runtime AS worker
LABEL org.opencontainers.image.title="Sagittal worker"
ENV SAGITTAL_MODELS_FILE=/etc/sagittal/models.toml
COPY --from=packages-worker /opt/sagittal /opt/sagittal
COPY --from=build-worker /opt/own /opt/sagittal
COPY --from=build-worker --chown=65532:65532 /opt/data/ /data/
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
EXPOSE 9091
USER 65532:65532
ENTRYPOINT ["sagittal-worker"]
