"""What the machine is, what it allows, and what its libraries are kept from doing."""
