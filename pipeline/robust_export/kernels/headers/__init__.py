"""The C++ headers that the kernels are built with, of the runtimes whose Python packages have none."""
