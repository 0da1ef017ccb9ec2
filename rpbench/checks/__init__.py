"""What can be checked of a result without training anything: one function per check, on what was told of a cell."""
