# docker build -t tanq .                                                                          for the CPU
# docker build -t tanq --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .           for CUDA
# docker build -t tanq-inference --build-arg EXTRAS= .                                            without nnU-Net
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=[train,cluster]
# any user may run it, also one without a name, which MONAI asks for; nothing is written to the image
ENV HOME=/tmp MPLCONFIGDIR=/tmp USER=tanq PYTHONUNBUFFERED=1
WORKDIR /opt/tanq
COPY constraints.txt .
RUN grep -E "^torch(vision)?==" constraints.txt > torch.txt \
    && pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
        -c constraints.txt -r torch.txt
COPY pyproject.toml README.md LICENSE ./
COPY plugins plugins
RUN pip install --no-cache-dir -c constraints.txt ".$EXTRAS"
COPY bundles bundles
