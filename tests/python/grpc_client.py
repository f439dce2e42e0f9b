#!/usr/bin/env python3
"""An independent gRPC client: lists an agent's services, asks its health, tries a call.

It shares no code with the agents, and speaks server reflection v1alpha as most tools still do.
Prints one JSON document. Exit codes: 0 done, 1 a call failed, 3 Python packages are missing.
"""

import argparse
import json
import sys

try:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )
except ImportError as error:
    print(
        f"{error}; install them: pip install grpcio grpcio-health-checking grpcio-reflection",
        file=sys.stderr,
    )
    sys.exit(3)

TIMEOUT_SECONDS = 20


def read(path):
    with open(path, "rb") as file:
        return file.read()


def open_channel(args):
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read(args.ca),
        private_key=read(args.key),
        certificate_chain=read(args.certificate),
    )
    options = [("grpc.ssl_target_name_override", args.name)]
    return grpc.secure_channel(args.address, credentials, options)


def health(channel, service):
    request = health_pb2.HealthCheckRequest(service=service)
    stub = health_pb2_grpc.HealthStub(channel)
    reply = stub.Check(request, timeout=TIMEOUT_SECONDS)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def call_raw(channel, method):
    """Calls a method with an empty request; returns the name of the status code and its message."""
    identity = lambda message: message
    call = channel.unary_unary(method, request_serializer=identity, response_deserializer=identity)
    try:
        call(b"", timeout=TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT of an agent")
    parser.add_argument("--name", required=True, help="DNS name in its certificate")
    parser.add_argument("--ca", required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--health", action="append", default=[""], help="service to ask for")
    parser.add_argument("--call", action="append", default=[], help="/package.Service/Method")
    args = parser.parse_args()
    with open_channel(args) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = sorted(database.get_services())
        files = {name: database.FindFileContainingSymbol(name).name for name in services}
        report = {
            "services": services,
            "files": files,
            "health": {name: health(channel, name) for name in args.health},
            "calls": {method: call_raw(channel, method) for method in args.call},
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
        sys.exit(1)
