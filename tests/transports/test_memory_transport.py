from trunkline.testing import TransportConformance
from trunkline.testing.kit import Link
from trunkline.testing.links import LinkedMemory


class TestMemory(TransportConformance):
    def make_transport(self, link: Link, prefix: str) -> LinkedMemory:
        return LinkedMemory(link, "conformance", prefix=prefix)
