"""The demo EHR and PACS over many small studies, as a process of their own: for `rayhook bench`."""

import signal
import sys
import threading
from pathlib import Path

from rayhook.deploy.demo.catalogue import many_heads
from rayhook.deploy.demo.run import DemoAddresses, demo_peers

READY = "ready\n"


def serve(folder: Path, port: int, studies: int, images: int) -> None:
    """Serve until the process is told to stop; the service is expected at `port`, the two after it are ours."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    catalogue = many_heads(folder / "pacs", studies, images=images)
    with demo_peers(catalogue, DemoAddresses.from_port(port), folder):
        sys.stdout.write(READY)
        sys.stdout.flush()
        stopping.wait()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
