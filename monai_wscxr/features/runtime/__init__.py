"""Libraries that execute the frozen network on a CPU, behind one interface, and converted networks on disk."""
