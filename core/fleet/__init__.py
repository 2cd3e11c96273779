"""What the fleet decides: unit files, placement, engine and agent, without input or output."""
