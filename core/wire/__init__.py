"""Messages of the etcd v3 protocol, generated from etcd.proto."""
