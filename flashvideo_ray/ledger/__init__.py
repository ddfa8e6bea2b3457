"""The run directory: where things are, what the ledger records, and how rows become durable.

OUTPUT/run.json                          what the run is: settings, fingerprints, versions
OUTPUT/ledger/previews-*.parquet         one row a finished preview, with its scores and the decision
OUTPUT/ledger/clips-*.parquet            one row a candidate that ended: rendered, rejected, failed or skipped
OUTPUT/decisions/*.parquet               what people decided (`decisions`)
OUTPUT/requests/*.parquet                what people asked the service for (`requests`)
OUTPUT/previews/ab/<clip_id>.mp4, .jpg   preview and its poster
OUTPUT/latents/ab/<clip_id>.safetensors  stage-1 latents
OUTPUT/clips/ab/<clip_id>.mp4, .jpg      clip and its poster
"""
