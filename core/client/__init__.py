"""An asyncio client of any etcd v3 endpoint list."""
