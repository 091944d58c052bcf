"""LLVM IR for loops, reductions and products, and the threads that run it: needs llvmlite."""
