"""Inference server for bundles: Open Inference (V2) protocol over REST and gRPC, without torch.

A request passes `connection_limits` (REST only), `rest` or `grpc_service`, `tensors`, `service`, `batching`.
`server` runs one process, `workers` several. `ui` is the web page at /, `triton` writes model repositories
for Triton.
"""
