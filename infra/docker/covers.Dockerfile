# covers, and the jobs that need torch (`icg bootstrap`). TORCH=cpu: 2 GB less, for machines without a GPU.
# TORCH=cuda: torch brings CUDA's libraries as packages; the host needs NVIDIA's driver and container toolkit only.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH=cpu
# A mirror of PyPI, where there is one.
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
COPY infra/uv.lock infra/docker/covers.lock infra/without_torch.py /locks/
# PyTorch's CPU builds lie in its own index, under hashes that the lock cannot hold.
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /locks/uv.lock \
    && uv venv /opt/icg \
    && install="uv pip install --no-cache --python /opt/icg --compile-bytecode" \
    && if [ "$TORCH" = cpu ]; then \
        python /locks/without_torch.py /locks/covers.lock >/locks/rest.lock \
        && $install --torch-backend cpu $(python /locks/without_torch.py /locks/covers.lock --names) \
        && $install --no-deps --require-hashes -r /locks/rest.lock; \
    else \
        $install --no-deps --require-hashes -r /locks/covers.lock; \
    fi
COPY icg /app/icg
COPY workers /app/workers
COPY feature_repo /app/feature_repo
COPY examples /app/examples
COPY infra/kafka /app/infra/kafka
RUN printf '#!/opt/icg/bin/python\nfrom workers.cli import main\n\nmain()\n' >/opt/icg/bin/icg \
    && chmod 755 /opt/icg/bin/icg \
    && /opt/icg/bin/python -m compileall -q /app

FROM python:${PYTHON}
# By number, so that an orchestrator can see that it is not root.
RUN useradd --uid 10001 --home-dir /var/lib/icg --create-home icg
COPY --from=build /opt/icg /opt/icg
COPY --from=build /app /app
# The NVIDIA container toolkit reads the last two; elsewhere they mean nothing.
ENV PATH=/opt/icg/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    OPENBLAS_NUM_THREADS=1 \
    FEAST_USAGE=False \
    ICG_CACHE=/var/lib/icg/cache \
    ICG_FEAST_REPO=/app/feature_repo \
    ICG_FEAST_YAML=/app/feature_repo/redis.yaml \
    ICG_HEALTH_HOST=0.0.0.0 \
    ICG_HEALTH_PORT=9400 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001:10001
VOLUME /var/lib/icg
EXPOSE 9400
ENTRYPOINT ["icg"]
CMD ["run", "covers"]
