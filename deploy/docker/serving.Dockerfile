# The model side on the tritonserver of a Python wheel (CPU): Triton, Headrace's backend for SavedModels and ONNX models, and
# the watcher that brings new versions to it. Two containers of one pod run it: `tritonserver …`, `headrace models watch …`.
#
#   docker build -f deploy/docker/serving.Dockerfile -t headrace/serving .
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
# Packages for model repositories in object stores, such as: --build-arg STORES="s3fs gcsfs"
ARG STORES=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY constraints.txt ./
COPY deploy/docker/*.py deploy/docker/requirements.txt deploy/docker/
RUN python3 -m venv /build && /build/bin/pip install --quiet -r deploy/docker/requirements.txt
RUN python3 -m venv --without-pip /opt/headrace
# Of TensorFlow's wheel its two libraries are used, and of Triton's its server: neither brings its packages along.
RUN /build/bin/pip --python /opt/headrace/bin/python3 install --quiet --constraint constraints.txt --no-deps \
      nvidia-pytriton tensorflow-cpu \
 && find /opt/headrace/lib/python3*/site-packages/tensorflow -mindepth 1 -maxdepth 1 \
      ! -name __init__.py ! -name 'libtensorflow_*.so.2' -exec rm -r {} +
RUN /build/bin/pip --python /opt/headrace/bin/python3 install --quiet --constraint constraints.txt \
      "numpy<2" onnxruntime fsspec "tritonclient[grpc]" \
 && [ -z "${STORES}" ] || /build/bin/pip --python /opt/headrace/bin/python3 install --quiet ${STORES}
COPY pyproject.toml README.md LICENSE ./
COPY bridge bridge
COPY serving serving
COPY headrace headrace
RUN /build/bin/pip --python /opt/headrace/bin/python3 install --quiet --constraint constraints.txt . \
 && /opt/headrace/bin/python3 -m serving.triton /opt/headrace/backends \
 && ln -s /opt/headrace/lib/python3*/site-packages/pytriton/tritonserver/bin/tritonserver /opt/headrace/bin/tritonserver \
 && ln -s /opt/headrace/lib/python3*/site-packages/nvidia_pytriton.libs /opt/headrace/lib/triton
RUN /build/bin/python deploy/docker/sbom.py headrace/serving /opt/headrace /opt/headrace/headrace-serving.cdx.json

FROM ${BASE}
COPY --from=build /opt/headrace /opt/headrace
# Triton marks the stub of its Python backend as executable whenever it starts one, which only its owner may.
COPY --from=build --chown=65532:65532 /opt/headrace/backends /opt/headrace/backends
ENV PATH=/opt/headrace/bin:/usr/local/bin:/usr/bin:/bin LD_LIBRARY_PATH=/opt/headrace/lib/triton \
    TF_CPP_MIN_LOG_LEVEL=2 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--backend-directory=/opt/headrace/backends", "--model-repository=/models", "--model-control-mode=explicit"]
