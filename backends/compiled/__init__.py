"""NumPy's steps as compiled programs, where Numba is installed (the extra `fast`).

    machine.py   the BLAS's product and the system's calls, by address
    kernels.py   all that is compiled: the operations' loops, the table's interpreter, the threads' meeting
    program.py   a step, recorded and turned into a table
    threads.py   the helping threads

To add an operation: its loop and its line of `_do` in kernels.py, and in program.py what makes its row of the table
from the arguments of its specification in dnn.functional. The tests hold every operation against its specification, and
fail for one that they have no case for. A step with an operation that is not here runs as it is.
"""

from __future__ import annotations
