# One image for worker, bot, migrate and poolctl; which of them a container is, its command says.
# PYTHON_IMAGE may name a mirror's copy, or pin a digest: python:3.13-slim@sha256:…
ARG PYTHON_IMAGE=python:3.13-slim

# --- The dependencies alone, so that this layer stays as it is until requirements.lock changes.
FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY requirements.lock /build/
# The environment has no pip of its own. Byte code is tied to no time stamp, so that the same lock gives the same layer.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python install --no-compile --only-binary :all: --require-hashes \
      --requirement /build/requirements.lock \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/venv

# --- The code. `checked-hash`: a file that is changed in a running container counts, also with an older time stamp.
FROM ${PYTHON_IMAGE} AS code
WORKDIR /app
COPY bot/ bot/
COPY config/ config/
COPY db/ db/
COPY fleet/ fleet/
COPY local/ local/
COPY pool/ pool/
COPY poolctl/ poolctl/
COPY telemetry/ telemetry/
COPY worker/ worker/
# A clone that was made under umask 077 has files for its owner only.
RUN chmod -R a+rX /app && python -m compileall -q --invalidation-mode checked-hash /app

# --- What runs.
FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="poolctl" \
      org.opencontainers.image.description="Worker, bot, migrations and command line of a fleet on one PostgreSQL" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Nothing is installed in a running container. The base comes without byte code for Python's own library, and a read-only
# container cannot keep any: each start and each health check would compile it. The user has a number, so that Kubernetes
# can see that it is not root.
RUN python -m pip uninstall --quiet --yes --root-user-action ignore pip \
 && python -m compileall -q "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
 && groupadd --gid 10001 app \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin app
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=code /app /app
COPY --chmod=755 deploy/image/entrypoint.sh /usr/local/bin/entrypoint
COPY --chmod=755 deploy/image/poolctl.sh /usr/local/bin/poolctl
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["entrypoint"]
CMD ["python", "-m", "worker"]
