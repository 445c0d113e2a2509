"""The embedded inference server: bundles over the Open Inference (V2) protocol, REST and gRPC.

`settings` is what it may be told; `models` opens bundles; `batching` runs what arrives together as one batch;
`tensors` and `body` read requests and write answers; `service` is what both protocols share; `rest`, with
`connection` and `openapi`, and `rpc`, with `messages`, are the protocols; `metrics` and `logs` say what
happens; `server` is the life of one process, `workers` of several. Nothing here imports torch.
"""
