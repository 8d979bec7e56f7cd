# The command monai-wscxr for CPUs. docs/container.md explains building and running.
#   make wheel && docker build -t monai-wscxr .
FROM python:3.12.12-slim-bookworm AS installed

# torch's own index has builds for CPUs; those of PyPI bring 5 GB of CUDA libraries
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /build/
RUN python -m venv /opt/wscxr \
    && /opt/wscxr/bin/pip install --no-cache-dir --constraint /build/constraints.txt \
       --index-url "${TORCH_INDEX}" torch torchvision
COPY dist/*.whl /build/
RUN wheel="$(ls /build/monai_wscxr-*.whl)" \
    && /opt/wscxr/bin/pip install --no-cache-dir --constraint /build/constraints.txt "${wheel}[full,dicom,dicom-jpeg,openvino]" \
    && /opt/wscxr/bin/monai-wscxr doctor

FROM python:3.12.12-slim-bookworm
LABEL org.opencontainers.image.title="monai-wscxr" \
      org.opencontainers.image.description="Weakly supervised anomaly detection for chest X-rays; for research only" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=installed /opt/wscxr /opt/wscxr
RUN useradd --create-home --uid 1000 wscxr && mkdir /data && chown wscxr /data
ENV PATH=/opt/wscxr/bin:$PATH \
    OMP_WAIT_POLICY=PASSIVE
USER 1000
WORKDIR /data
ENTRYPOINT ["monai-wscxr"]
CMD ["--help"]
