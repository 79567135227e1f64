"""The HTTP api: which cover to show to whom. Reads Feast, S3 on a miss; writes nothing, loads no torch."""
