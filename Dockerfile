# Two images: `docker build --target service .` and `docker build --target worker --build-arg COMPUTE=cpu .`
# Both run as user 65532 on a read-only root; all they may want to write is /tmp.

# Any image with Python 3.11, its venv module and CA certificates will do. Release builds pin it by digest.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY deploy/requirements-build.txt deploy/
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --require-hashes --only-binary :all: -r deploy/requirements-build.txt \
 && python3 -m venv --without-pip /opt/sagittal

# Sagittal itself comes last, so that a change of it installs nothing else anew.
FROM build AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY service service
COPY workers workers
COPY clients clients
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM build AS build-service
COPY deploy/requirements-service.txt deploy/
RUN /opt/build/bin/pip --python /opt/sagittal/bin/python install --require-hashes --only-binary :all: \
      -r deploy/requirements-service.txt
COPY --from=wheel /wheels /wheels
RUN /opt/build/bin/pip --python /opt/sagittal/bin/python install --no-deps --no-index /wheels/*.whl \
 && /opt/sagittal/bin/python -m compileall -q /opt/sagittal/lib

FROM build AS build-worker
# `cuda`: PyPI's build of torch with NVIDIA's libraries, all by hash. `cpu`: the build of TORCH_INDEX, by version.
ARG COMPUTE=cuda
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY deploy/requirements-worker-${COMPUTE}.txt deploy/torch.txt deploy/
RUN if [ "${COMPUTE}" = cpu ]; then \
      /opt/build/bin/pip --python /opt/sagittal/bin/python install --no-deps --only-binary :all: \
        --index-url "${TORCH_INDEX}" -r deploy/torch.txt; \
    fi \
 && /opt/build/bin/pip --python /opt/sagittal/bin/python install --require-hashes --no-deps --only-binary :all: \
      -r "deploy/requirements-worker-${COMPUTE}.txt"
COPY --from=wheel /wheels /wheels
RUN /opt/build/bin/pip --python /opt/sagittal/bin/python install --no-deps --no-index /wheels/*.whl \
 && mkdir -p /opt/data/concepts

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="Sagittal" \
      org.opencontainers.image.description="Explains image classifiers as a service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/sagittal/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    SAGITTAL_LOG_FORMAT=json \
    SAGITTAL_METRICS_HOST=0.0.0.0
WORKDIR /
STOPSIGNAL SIGTERM

FROM runtime AS service
LABEL org.opencontainers.image.title="Sagittal service"
ENV SAGITTAL_LISTEN=0.0.0.0:50051
COPY --from=build-service /opt/sagittal /opt/sagittal
EXPOSE 50051 9090
USER 65532:65532
ENTRYPOINT ["sagittal-service"]

FROM runtime AS worker
LABEL org.opencontainers.image.title="Sagittal worker"
ENV SAGITTAL_MODELS_FILE=/etc/sagittal/models.toml
COPY --from=build-worker /opt/sagittal /opt/sagittal
# A new volume that is mounted here belongs to whom its place in the image does.
COPY --from=build-worker --chown=65532:65532 /opt/data/ /data/
EXPOSE 9091
USER 65532:65532
ENTRYPOINT ["sagittal-worker"]
