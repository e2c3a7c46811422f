"""The Python client of a mixwright service.

::

    import mixwright

    with mixwright.Client("http://127.0.0.1:8000") as client:
        for row in client.rows("blend@1", rank=0, world_size=8):
            ...

Rows are read by Arrow streams that go on where they broke off. Errors of the service are those of
``mixwright.errors``, as if the work were done here. docs/client.md says what is guaranteed.
"""

from mixwright.client.client import Client

__all__ = ["Client"]
