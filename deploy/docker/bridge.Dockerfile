# The bridge: `headrace run` and the commands beside it, without TensorFlow and Triton. Only Python, the packages and the
# libraries that these load are in it: no shell, no package manager.
#
#   docker build -f deploy/docker/bridge.Dockerfile -t headrace/bridge .
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /source
COPY constraints.txt ./
COPY deploy/docker/*.py deploy/docker/requirements.txt deploy/docker/
RUN python3 -m venv /build && /build/bin/pip install --quiet -r deploy/docker/requirements.txt
RUN python3 -m venv --without-pip /opt/headrace
COPY pyproject.toml README.md LICENSE ./
COPY bridge bridge
COPY serving serving
COPY headrace headrace
RUN /build/bin/pip --python /opt/headrace/bin/python3 install --quiet --no-compile --constraint constraints.txt .
RUN /build/bin/python deploy/docker/rootfs.py /rootfs /opt/headrace

FROM scratch
COPY --from=build /rootfs /
ENV PATH=/opt/headrace/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
EXPOSE 9464
ENTRYPOINT ["/opt/headrace/bin/headrace"]
CMD ["run", "/etc/headrace/pipeline.yaml"]
