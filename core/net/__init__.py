"""What the network decides: configuration, subnet leases and the kernel state they ask for."""
