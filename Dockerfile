# Debian, not Alpine: LiveKit's SDK has no wheel for musl.
FROM python:3.11-slim AS compiled

RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev make
WORKDIR /app
COPY Makefile requirements-dev.txt ./
COPY gateway/rooms/native/inbox.c gateway/rooms/native/
RUN make gateway/rooms/native/_inbox.so

FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_HOST=0.0.0.0

WORKDIR /app

# Wheels only, each one known by its hash: no set-up code of others runs.
COPY requirements.txt .
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore \
        --only-binary :all: --require-hashes --requirement requirements.txt

COPY LICENSE openapi.yaml ./
COPY gateway gateway
COPY --from=compiled /app/gateway/rooms/native/_inbox.so gateway/rooms/native/

# A number, so that Kubernetes can see that it is not root.
USER 65532:65532

EXPOSE 8080

# Exec form: the gateway itself gets SIGTERM, and drains.
CMD ["python", "-m", "gateway"]
