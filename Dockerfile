# mixwright as a container: docs/operations.md says how to build and run it.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
# What to install: cpu or gpu, and what else of pyproject.toml's extras.
ARG EXTRAS=cpu,s3,postgresql
# The package index of PyTorch's CPU build, where the usual index has the CUDA build under the plain name: its "Get
# Started" page shows the address. Without it, an image for the CPU is not built there, rather than gigabytes too large.
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/mixwright
ENV PATH=/opt/mixwright/bin:$PATH
# A range, as in pyproject.toml.
# hadolint ignore=DL3013
RUN if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" 'torch>=2.4,<2.14'; fi
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints-cpu.txt ./
COPY mixwright mixwright
# The project that was just copied.
# hadolint ignore=DL3013
RUN case ",$EXTRAS," in \
        *,gpu,*) pip install ".[$EXTRAS]" ;; \
        *) pip install -c constraints-cpu.txt ".[$EXTRAS]" \
            || { echo "pass --build-arg TORCH_INDEX=... with the index of PyTorch's CPU build" >&2; exit 1; } ;; \
    esac

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title="mixwright" \
      org.opencontainers.image.description="Curates and selects training data for language models" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/mixwright /opt/mixwright
RUN useradd --system --uid 10001 --create-home mixwright \
    && install -d -o mixwright -g mixwright /data
ENV PATH=/opt/mixwright/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MIXWRIGHT_HOME=/data \
    MIXWRIGHT_LOG_FORMAT=json \
    RAY_USAGE_STATS_ENABLED=0
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["mixwright"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
