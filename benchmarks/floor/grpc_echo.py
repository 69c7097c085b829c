"""The floor of gRPC: a bare grpcio server that gives back the bytes of every call.

Usage: grpc_echo.py PORT. No messages are decoded; the method's name does not matter.
"""

import sys

import grpc
import uvloop


class Echo(grpc.GenericRpcHandler):
    def service(self, _call):
        return grpc.unary_unary_rpc_method_handler(echo)


async def echo(request, _context):
    return request


async def main(port):
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Echo()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
