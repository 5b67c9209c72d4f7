"""Read a graph from its text form; `prunec.ir.text` describes the syntax.

graph     := "graph" word "(" [word "=" int {"," ...}] ")" "{" statement* "}"
statement := "input" name ":" type
           | word name ":" type ["alias" name {"," name}]             a parameter
           | [name {"," name} "="] word "(" [arguments] ")" [":" type {"," type}]
             ["pointwise"] ["loc" "(" string "," string ")"]          an operation
           | "output" word "=" name
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from prunec.ir.axes import Atom, Axis, Product, Sum, size
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Arg, Attr, Dim, Graph, Loc, Op, Parameter, Ref, TensorType, Value

__all__ = ["UNIT", "parse"]

T = TypeVar("T")

TOKEN = re.compile(
    r"""
      (?P<space>   (?: \s | \#.* )+ )
    | (?P<name>    [%@?] (?: [\w./]+ | "(?:[^"\\\n]|\\.)*" ) )
    | (?P<string>  "(?:[^"\\\n]|\\.)*" )
    | (?P<number>  -? \d+ (?:\.\d*)? (?:[eE][+-]?\d+)? | -inf\b )
    | (?P<word>    [A-Za-z_] (?: [\w./] | \#\d )* )
    | (?P<mark>    [()\[\]{}<>=:,+*] )
    """,
    re.VERBOSE | re.ASCII,
)
CONSTANTS: dict[str, Arg] = {
    "true": True,
    "false": False,
    "none": None,
    "inf": math.inf,
    "nan": math.nan,
}
UNIT = Atom("1", 1)
"""The axis of a dimension of size 1, which broadcasts and is never unified; written `1`."""
END = "end of text"


def parse(text: str, *, where: str = "<text>") -> Graph:
    """The graph that `text` describes; a PrunecError names `where`, line and column if none."""
    parser = Parser(list(tokens(text, where)), text, where)
    try:
        graph = parser.graph()
    except RecursionError:
        parser.stop("nested too deeply")
    parser.end()
    return graph


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    start: int


def tokens(text: str, where: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found:
            stop(text, at, where, f"unexpected character {text[at]!r}")
        kind = found.lastgroup
        assert kind is not None
        if kind != "space":
            yield Token(kind, found.group(), at)
        at = found.end()
    yield Token(END, END, len(text.rstrip()))


def stop(text: str, at: int, where: str, message: str) -> NoReturn:
    """Raise the error for position `at`, with the line it is on and a caret under it."""
    line = text.count("\n", 0, at) + 1
    begin = text.rfind("\n", 0, at) + 1
    column = at - begin
    source = text[begin:].split("\n", 1)[0]
    caret = re.sub(r"[^\t]", " ", source[:column]) + "^"
    raise fail(
        "P020",
        message,
        where=f"{where}:{line}:{column + 1}",
        snippet=f"{source}\n   |  {caret}",
        help="correct the text; the docstring of prunec.ir.text describes the syntax",
    )


@dataclass
class Parser:
    """Recursive descent with two tokens of lookahead; one method for each rule of the grammar."""

    tokens: list[Token]
    text: str
    where: str
    at: int = 0
    inputs: list[Value] = field(default_factory=list)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    outputs: list[tuple[str, str]] = field(default_factory=list)

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    @property
    def following(self) -> Token:
        return self.tokens[min(self.at + 1, len(self.tokens) - 1)]

    def stop(self, message: str, token: Token | None = None) -> NoReturn:
        stop(self.text, (token or self.token).start, self.where, message)

    def expected(self, what: str) -> NoReturn:
        got = self.token.text
        self.stop(f"expected {what}, found {got if got == END else repr(got)}")

    def accept(self, text: str) -> bool:
        if self.token.kind not in ("mark", "word") or self.token.text != text:
            return False
        self.at += 1
        return True

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.expected(repr(text))

    def take(self, kind: str, what: str) -> str:
        if self.token.kind != kind:
            self.expected(what)
        self.at += 1
        return self.tokens[self.at - 1].text

    def until(self, close: str, item: Callable[[], T], separator: str = ",") -> list[T]:
        """Items up to the closing mark, which is consumed; an empty separator means none."""
        items: list[T] = []
        while not self.accept(close):
            if items and separator:
                self.expect(separator)
            items.append(item())
        return items

    def listed(self, item: Callable[[], T]) -> list[T]:
        """One or more items with commas between them."""
        items = [item()]
        while self.accept(","):
            items.append(item())
        return items

    def end(self) -> None:
        if self.token.kind != END:
            self.expected(END)

    # Names

    def string(self) -> str:
        token = self.token
        return self.unquote(self.take("string", "a quoted text"), token)

    def unquote(self, text: str, token: Token) -> str:
        try:
            return str(json.loads(text))
        except json.JSONDecodeError as error:
            self.stop(f"bad quoted text: {error.msg}", token)

    def word(self, what: str) -> str:
        return self.string() if self.token.kind == "string" else self.take("word", what)

    def name(self, sigils: str = "%@?") -> str:
        token = self.token
        if token.kind != "name" or token.text[0] not in sigils:
            self.expected("a name with " + " or ".join(s for s in sigils if s != "?"))
        self.at += 1
        sigil, rest = token.text[0], token.text[1:]
        if rest.startswith('"'):
            rest = self.unquote(rest, token)
        return rest if sigil == "?" else sigil + rest

    def integer(self, what: str = "a whole number") -> int:
        token = self.token
        text = self.take("number", what)
        if not text.lstrip("-").isdigit():
            self.stop(f"expected {what}, found {text!r}", token)
        return int(text)

    # Statements

    def graph(self) -> Graph:
        self.expect("graph")
        name = self.word("the graph's name")
        self.expect("(")
        symbols = self.until(")", self.symbol)
        self.expect("{")
        self.until("}", self.statement, separator="")
        return Graph(
            name=name,
            inputs=tuple(self.inputs),
            parameters=self.parameters,
            ops=tuple(self.ops),
            outputs=tuple(self.outputs),
            symbols=dict(symbols),
        )

    def symbol(self) -> tuple[str, int]:
        name = self.word("a symbol")
        self.expect("=")
        return name, self.integer("the symbol's example value")

    def statement(self) -> None:
        if self.token.kind == "name":
            return self.op(self.results())
        if self.token.kind not in ("word", "string"):
            self.expected("an input, parameter, operation or output")
        if self.following.text == "(":
            return self.op(())
        if self.following.kind == "name" and self.following.text.startswith("@"):
            return self.parameter()
        if self.accept("input"):
            name = self.name("%?")
            self.expect(":")
            return self.inputs.append(Value(name, self.type()))
        if self.accept("output"):
            public = self.word("the output's public name")
            self.expect("=")
            return self.outputs.append((public, self.name()))
        self.expected("an input, parameter, operation or output")

    def parameter(self) -> None:
        kind = self.word("the kind of parameter")
        token = self.token
        name = self.name("@")[1:]
        if name in self.parameters:
            self.stop(f"parameter @{name} is declared twice", token)
        self.expect(":")
        type_ = self.type()
        aliases = self.listed(lambda: self.name("@")[1:]) if self.accept("alias") else ()
        self.parameters[name] = Parameter(name, type_, kind, tuple(aliases))

    def results(self) -> tuple[str, ...]:
        names = tuple(self.listed(lambda: self.name("%?")))
        self.expect("=")
        return names

    def op(self, results: tuple[str, ...]) -> None:
        name = self.word("the operation's name")
        self.expect("(")
        args: list[Arg] = []
        kwargs: list[tuple[str, Arg]] = []
        self.until(")", lambda: self.argument(args, kwargs))
        types = tuple(self.listed(self.type)) if self.accept(":") else ()
        pointwise = self.accept("pointwise")
        loc = self.loc() if self.accept("loc") else Loc()
        self.ops.append(Op(name, tuple(args), tuple(kwargs), results, types, loc, pointwise))

    def loc(self) -> Loc:
        self.expect("(")
        module = self.string()
        self.expect(",")
        source = self.string()
        self.expect(")")
        return Loc(module, source)

    # Arguments

    def argument(self, args: list[Arg], kwargs: list[tuple[str, Arg]]) -> None:
        if self.token.kind in ("word", "string") and self.following.text == "=":
            name = self.word("the argument's name")
            self.expect("=")
            return kwargs.append((name, self.value()))
        if kwargs:
            self.stop("an argument without a name follows one with a name")
        args.append(self.value())

    def value(self) -> Arg:
        token = self.token
        if token.kind == "name":
            return Ref(self.name())
        if token.kind == "number":
            self.at += 1
            text = token.text
            return int(text) if text.lstrip("-").isdigit() else float(text)
        if self.accept("["):
            return tuple(self.until("]", self.value))
        if token.kind in ("word", "string") and self.following.text == "<":
            return self.attr()
        if token.kind == "string":
            return self.string()
        if token.kind == "word" and token.text in CONSTANTS:
            self.at += 1
            return CONSTANTS[token.text]
        self.expected("an argument")

    def attr(self) -> Attr:
        kind = self.word("the attribute's kind")
        self.expect("<")
        value = self.word("the attribute's value")
        self.expect(">")
        return Attr(kind, value)

    # Types

    def type(self) -> TensorType:
        dtype = self.word("a dtype")
        if not self.accept("["):
            return TensorType(dtype)
        start = self.token
        dims = self.until("]", self.dim)
        shape = tuple(dim for dim, _ in dims)
        if self.accept("axes"):
            self.expect("[")
            return TensorType(dtype, shape, tuple(self.until("]", self.axis)))
        if all(axis is None for _, axis in dims):
            return TensorType(dtype, shape)
        if any(axis is None and dim != UNIT.size for dim, axis in dims):
            self.stop("some dimensions have an axis and some, of a size other than 1, none", start)
        return TensorType(dtype, shape, tuple(UNIT if a is None else a for _, a in dims))

    def dim(self) -> tuple[Dim, Axis | None]:
        if self.token.text in ("(", "{") or self.following.text == ":":
            axis = self.axis()
            return size(axis), axis
        extent = self.extent()
        return extent, self.axis() if self.accept("=") else None

    def extent(self) -> Dim:
        if self.token.kind != "number":
            return self.word("a size, symbol or axis")
        if self.following.text != "*":
            return self.integer("a size")
        factor = self.take("number", "a factor")
        self.expect("*")
        return f"{factor}*{self.take('word', 'a symbol')}"

    def axis(self) -> Axis:
        if self.accept("("):
            return Product(tuple(self.until(")", self.axis, separator="")))
        if self.accept("{"):
            return Sum(tuple(self.until("}", self.axis, separator="+")))
        if self.token.text == "1":
            self.at += 1
            return UNIT
        name = self.word("an axis")
        self.expect(":")
        return Atom(name, self.integer("the axis's size"))
