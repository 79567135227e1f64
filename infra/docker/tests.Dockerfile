# The tests against the servers of docker-compose.yml (`docker compose --profile test`). Everything of requirements.lock.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON}
ARG TORCH=cpu
# A mirror of PyPI, where there is one.
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
# The docs' commands, which a test runs, call curl; the clock that jumps is compiled.
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends curl gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY infra/uv.lock requirements.lock infra/without_torch.py /locks/
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /locks/uv.lock \
    && uv venv /opt/icg \
    && install="uv pip install --no-cache --python /opt/icg --compile-bytecode" \
    && if [ "$TORCH" = cpu ]; then \
        python /locks/without_torch.py /locks/requirements.lock >/locks/rest.lock \
        && $install --torch-backend cpu $(python /locks/without_torch.py /locks/requirements.lock --names) \
        && $install --no-deps --require-hashes -r /locks/rest.lock; \
    else \
        $install --no-deps --require-hashes -r /locks/requirements.lock; \
    fi \
    && useradd --uid 10001 --home-dir /var/lib/icg --create-home icg
COPY --chown=10001:10001 . /app
RUN printf '#!/opt/icg/bin/python\nfrom workers.cli import main\n\nmain()\n' >/opt/icg/bin/icg \
    && chmod 755 /opt/icg/bin/icg
ENV PATH=/opt/icg/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 FEAST_USAGE=False OMP_NUM_THREADS=1
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["python", "-m", "pytest"]
