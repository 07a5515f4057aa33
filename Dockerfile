# The service alone. Build:  docker build -t rstore .
# Run:    docker run --read-only --tmpfs /tmp -v rstore:/data -e RSTORED_ADMIN_TOKEN="$(openssl rand -hex 32)" -p 127.0.0.1:8000:8000 rstore
# Settings are environment variables (docs/operating.md). The service listens on all addresses of its container. So it
# starts only if its store is closed (RSTORED_ADMIN_TOKEN, RSTORED_CLOSED or a token), or with RSTORED_INSECURE=true.

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY locks locks
COPY client client
COPY service service
# Everything comes from the locks, and pip checks the hashes. That includes the build backend: it is installed first, and
# the build is not isolated.
RUN python -m venv /build \
    && /build/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --no-deps -r locks/build.txt \
    && /build/bin/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir /wheels .
RUN python -m venv /opt/rstore \
    && /opt/rstore/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --no-deps -r locks/service.txt \
    && /opt/rstore/bin/pip install --quiet --disable-pip-version-check --no-deps --no-index /wheels/rstore-*.whl

FROM python:3.11-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin rstore \
    && install --directory --owner=rstore --group=rstore --mode=0700 /data
COPY --from=build /opt/rstore /opt/rstore
# The image sets its defaults by variables and not by options, because an option would override a container's variables.
ENV PATH=/opt/rstore/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RSTORED_DSN=sqlite:////data/rstore.db \
    RSTORED_HOST=0.0.0.0
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-m", "rstored.health"]
ENTRYPOINT ["rstored"]
CMD ["serve"]
