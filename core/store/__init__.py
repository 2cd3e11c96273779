"""What the store decides: members, leases, alarms and quotas, without input or output."""
