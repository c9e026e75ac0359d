# Two images: `--target gateway` (no torch) and `--target worker` (CUDA). A worker for CPUs takes torch from elsewhere:
#   docker build --target worker --build-arg CPU_INDEX=<pip index with CPU builds of torch> --build-arg EXTRAS=worker,fast .
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm
ARG NODE_IMAGE=node:22.20.0-bookworm-slim

# The page for people: static files that the gateway serves.
FROM ${NODE_IMAGE} AS page
WORKDIR /src/web
COPY web ./
RUN npm ci --ignore-scripts --no-audit --no-fund && npm run check && npm run build

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv --without-pip /opt/wsisam
COPY pyproject.toml constraints.txt docker/requirements.py ./

FROM build AS build-gateway
COPY docker/gateway.lock ./
RUN pip --python /opt/wsisam/bin/python install --require-hashes --requirement gateway.lock
COPY README.md ./
COPY model model
COPY service service
COPY --from=page /src/service/wsisam_service/page service/wsisam_service/page
RUN pip --python /opt/wsisam/bin/python install --no-deps .

FROM build AS build-worker
ARG EXTRAS=worker
ARG CPU_INDEX=
COPY docker/worker.lock ./
# The lock is of the CUDA worker; one with other extras, or torch from elsewhere, is pinned by constraints.txt alone.
RUN if [ "${EXTRAS}${CPU_INDEX}" = worker ]; then \
        pip --python /opt/wsisam/bin/python install --require-hashes --requirement worker.lock; \
    else \
        python requirements.py "${EXTRAS}" > worker.txt \
        && pip --python /opt/wsisam/bin/python install ${CPU_INDEX:+--extra-index-url "${CPU_INDEX}"} \
            --constraint constraints.txt --requirement worker.txt; \
    fi
COPY README.md ./
COPY model model
COPY service service
RUN pip --python /opt/wsisam/bin/python install --no-deps .

FROM ${PYTHON_IMAGE} AS run
# Installers are of no use any more, and the root file system may be read-only from here on.
RUN pip uninstall --yes pip setuptools wheel && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin wsisam
COPY docker/healthy.py /opt/healthy.py
ENV PATH=/opt/wsisam/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp WSISAM_HOST=0.0.0.0
USER 10001:10001
ENTRYPOINT ["wsisam"]

FROM run AS worker
COPY --from=build-worker /opt/wsisam /opt/wsisam
ENV WSISAM_PORT=8100 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8100
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["python", "/opt/healthy.py", "8100"]
CMD ["worker"]

FROM run AS gateway
COPY --from=build-gateway /opt/wsisam /opt/wsisam
ENV WSISAM_PORT=8000 WSISAM_SLIDES=/slides
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "/opt/healthy.py", "8000"]
CMD ["serve"]
