"""The typed graph: axes, operations and values; inference, text form and verifier.

Imports no framework. `Graph` is what frontends make and backends emit; `Axis` is the type of a
dimension; `infer` finds it; `ir/dialects` holds one table of op signatures a vocabulary.
"""

from prunec.ir.axes import Atom, Axis, Product, Selection, Sum
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.ir.graph import Graph, Op, Parameter, Ref, TensorType, Value
from prunec.ir.infer import infer
from prunec.ir.parser import parse
from prunec.ir.text import print_graph
from prunec.ir.verify import verify

__all__ = [
    "Atom",
    "Axis",
    "Diagnostic",
    "Exit",
    "Graph",
    "Op",
    "Parameter",
    "Product",
    "PrunecError",
    "Ref",
    "Selection",
    "Sum",
    "TensorType",
    "Value",
    "infer",
    "parse",
    "print_graph",
    "verify",
]
