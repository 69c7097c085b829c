"""The gRPC door: servers, and what every call passes.

Importing `grpc` costs about 90 ms and 26 MiB, so nothing outside this room and the servicers does
it, and those are imported only when the door is opened.
"""

import os

# The library's fork handlers also run in the children that become workers, between fork and exec,
# where they find the library's threads gone: about every fourth worker died of SIGSEGV before its
# first line. This process never forks without exec, so they have no use. It must be set before the
# library starts; workers get the environment as it was before.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
