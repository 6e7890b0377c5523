# The model side on NVIDIA's own Triton image, GPUs included: Headrace's backend and watcher are added to it. The base has
# no default: name the release that your drivers support, an image that ends in -py3.
#
#   docker build -f deploy/docker/serving-nvidia.Dockerfile --build-arg BASE=…/tritonserver:25.06-py3 -t headrace/serving-nvidia .
ARG BASE
FROM ${BASE}
ARG STORES=""
# A GPU's libraries: --build-arg TENSORFLOW=tensorflow --build-arg ONNXRUNTIME=onnxruntime-gpu
ARG TENSORFLOW=tensorflow-cpu
ARG ONNXRUNTIME=onnxruntime
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/headrace/source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY bridge bridge
COPY serving serving
COPY headrace headrace
# Into the image's own Python: the stub of its Python backend runs that one.
RUN pip install --quiet --break-system-packages --constraint constraints.txt . "numpy<2" ${ONNXRUNTIME} fsspec "tritonclient[grpc]" ${STORES} \
 && pip install --quiet --break-system-packages --constraint constraints.txt --no-deps ${TENSORFLOW} \
 && mkdir /opt/headrace/backends && cp -r /opt/tritonserver/backends/python /opt/headrace/backends/python \
 && python3 -m serving.triton /opt/headrace/backends \
 && chown -R 65532:65532 /opt/headrace/backends
ENV PATH=/opt/tritonserver/bin:${PATH} TF_CPP_MIN_LOG_LEVEL=2 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000 8001 8002
ENTRYPOINT []
CMD ["tritonserver", "--backend-directory=/opt/headrace/backends", "--model-repository=/models", "--model-control-mode=explicit"]
