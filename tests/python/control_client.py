#!/usr/bin/env python3
"""An independent gRPC client that knows nothing but an agent's address and a certificate.

It lists the services by reflection (v1 and v1alpha), asks for the agent's health, builds the
messages of sitepair.v1.Control from the descriptors that reflection gives, calls Status, and takes
the first message of the stream Watch. Shares no code with the agents. Prints one JSON document.
Exit codes: 0 done, 1 a call failed, 3 Python packages are missing.
"""

import argparse
import json
import sys

try:
    import grpc
    from google.protobuf import descriptor_pool, json_format, message_factory
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2
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
CONTROL = "sitepair.v1.Control"


def read(path):
    if path is None:
        return None
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


def services_by_reflection(channel, version):
    """Both versions of the reflection protocol have the same messages under other names."""
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    reply = next(call(iter([request]), timeout=TIMEOUT_SECONDS))
    return sorted(service.name for service in reply.list_services_response.service)


def health(channel, service):
    stub = health_pb2_grpc.HealthStub(channel)
    reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_SECONDS)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def method(channel, name):
    """A callable for one method of Control, and its request class, from reflection alone."""
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    found = pool.FindServiceByName(CONTROL).FindMethodByName(name)
    request = message_factory.GetMessageClass(found.input_type)
    reply = message_factory.GetMessageClass(found.output_type)
    make = channel.unary_stream if found.server_streaming else channel.unary_unary
    call = make(
        f"/{CONTROL}/{name}",
        request_serializer=request.SerializeToString,
        response_deserializer=reply.FromString,
    )
    return call, request


def plain(message):
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def look(channel):
    status, status_request = method(channel, "Status")
    watch, watch_request = method(channel, "Watch")
    stream = watch(watch_request(interval_ms=1000), timeout=TIMEOUT_SECONDS)
    first = plain(next(stream))
    stream.cancel()
    return {
        "reflection": {
            version: services_by_reflection(channel, version) for version in ("v1", "v1alpha")
        },
        "health": {name: health(channel, name) for name in ("", CONTROL)},
        "status": plain(status(status_request(), timeout=TIMEOUT_SECONDS)),
        "watch": first,
    }


def refused(channel, path):
    """Calls a method with an empty request; gives the status code's name and its message."""
    same = lambda message: message
    call = channel.unary_unary(path, request_serializer=same, response_deserializer=same)
    try:
        call(b"", timeout=TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["OK", ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT of an agent")
    parser.add_argument("--name", required=True, help="DNS name in its certificate")
    parser.add_argument("--ca", required=True)
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--call", action="append", default=[], help="/package.Service/Method")
    args = parser.parse_args()
    with open_channel(args) as channel:
        if args.call:
            report = {path: refused(channel, path) for path in args.call}
        else:
            report = look(channel)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
        sys.exit(1)
