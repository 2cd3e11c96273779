"""The one place of the version: packaging, daemons and commands read it from here."""

VERSION = "0.1.0"

# The etcd release whose behaviour the store keeps; clients read it from Status and /version.
ETCD_VERSION = "3.6.0"
