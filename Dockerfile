# The service alone. Build:  docker build -t rstore .
# Run:    docker run --read-only --tmpfs /tmp -v rstore:/data -p 127.0.0.1:8000:8000 rstore serve --host 0.0.0.0 --insecure
# Without --insecure the service listens beyond loopback only if the store has a token (docs/operating.md), and says so.

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY locks locks
COPY client client
COPY service service
# Everything comes from the locks, hashes checked, the build backend too: it is installed first and the build is not isolated.
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
ENV PATH=/opt/rstore/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RSTORED_DSN=sqlite:////data/rstore.db
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as r; s = 's' * ('RSTORED_TLS_CERT' in os.environ); r.urlopen(f'http{s}://127.0.0.1:8000/healthz', timeout=4, context=ssl._create_unverified_context())"]
ENTRYPOINT ["rstored"]
CMD ["serve", "--host", "0.0.0.0"]
