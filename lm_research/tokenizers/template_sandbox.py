"""Jinja's sandbox with bounds on time and size: a model's chat template is a program of whoever made the model.

Jinja's own sandbox keeps programs away from the machine, but lets them run for ever and fill the memory. Here each step of a loop, call,
operator and output is counted against a budget for one rendering, in whichever thread it runs; whatever makes much of little is
charged before it is done, because nothing stops it then.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import re
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

SECONDS = 3.0  # of a processor; templates in use need thousandths
MAX_CHARACTERS = 2**27  # that a rendering makes, steps in between included, and
_LONGEST = 2**24  # of one value
_ITEM = 16  # characters that an item of a list counts for, and
_OBJECT = 64  # that a new object does
_BITS = 2**17  # of an integer
# Filters that no conversation needs, of which each has a way to grow without bound.
_LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
# Filters that neither write, compare nor hash the items of a list.
_SHALLOW = """attr batch count d default first items last length list map random reject rejectattr reverse select selectattr slice
sum""".split()

_COMPARE = "== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le in".split()  # tests


class _Budget:
    def __init__(self) -> None:
        self.room, self.end = MAX_CHARACTERS, time.thread_time() + SECONDS

    def spend(self, size: int) -> None:
        self.room -= size
        if size > _LONGEST or self.room < 0:
            raise SecurityError("it makes too much text or too many values")
        if time.thread_time() > self.end:
            raise SecurityError(f"it takes more than {SECONDS:g} seconds")

    def weigh(self, value: Any, margin: int = 0) -> None:
        """Spends what a value takes when written out, its items included wherever they occur; `margin` is per item and level."""
        level, depth = [value], 0
        while level:
            inner: list[Any] = []
            for part in level:
                if isinstance(part, str | bytes):
                    self.room -= len(part)
                elif isinstance(part, Mapping):
                    inner += [*part, *part.values()]
                elif isinstance(part, list | tuple | set | frozenset):
                    inner += part
                elif isinstance(part, int):
                    _check_int(part.bit_length())
                if len(inner) * _ITEM > self.room:
                    break
            depth += 1
            self.spend(len(level) // 2)
            self.room -= len(inner) * (_ITEM + margin * depth)
            self.spend(0)
            level = inner


_budget: contextvars.ContextVar[_Budget] = contextvars.ContextVar("budget")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Whatever templates do inside has one budget; what goes past it raises a SecurityError."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def charge(value: Any, margin: int) -> None:
    """Spends what a value takes as text in which each item has a margin for each level that it stands at."""
    _budget.get().weigh(value, margin)


def _spend(size: int) -> None:
    _budget.get().spend(size)


def _weigh(value: Any) -> Any:
    if isinstance(value, list | tuple | Mapping | set | frozenset):
        _budget.get().weigh(value)
    return value


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return _OBJECT + _ITEM * len(value) if isinstance(value, list | tuple | dict | set) else 1


def _sized(value: Any) -> Any:
    _spend(_size(value))
    return value


def _check_int(bits: int) -> None:
    if bits > _BITS:
        raise SecurityError("it makes a number of too many digits")


# ---------------------------------------------------------------------------------------------- what grows


def _number(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _check_replace(text: Any, old: Any = "", new: Any = "", *_: Any, **named: Any) -> None:
    own = [text, named.get("old", old), named.get("new", new)]
    text, old, new = own if all(isinstance(part, bytes) for part in own) else map(str, own)
    _spend(len(text) + text.count(old) * len(new))


def _check_join(items: Any, separator: str) -> list[Any]:
    """The items as a list that may be joined."""
    own = list(items)
    _weigh(own)
    _spend(len(own) * len(separator))
    return own


def _check_percent(form: str | bytes, values: Any) -> None:
    text = form if isinstance(form, str) else form.decode("latin-1")
    found = re.findall(r"%(?:\([^)]*\))?[-+ #0]*(\d*)(?:\.(\d+))?", text)
    _spend(len(text) + sum(int(number[:9]) for pair in found for number in pair if number))
    own = values.values() if isinstance(values, Mapping) else values if isinstance(values, tuple) else (values,)
    if "*" in text:
        _spend(sum(map(_number, own)))
    for _ in range(max(1, text.count("%("))):
        _weigh(tuple(own))


def _check_method(owner: Any, name: str, values: list[Any]) -> list[Any]:
    """The arguments of a method of Python's own, once what it makes has been paid for."""
    if isinstance(owner, list | tuple):
        _weigh(owner)
    if isinstance(owner, str | bytes) and name == "join" and values:
        return [_check_join(values[0], str(owner)), *values[1:]]
    for value in values:
        _weigh(value)
    numbers = [_number(value) for value in values]
    if not isinstance(owner, str | bytes):
        _spend(max(numbers, default=0) if isinstance(owner, int) else 0)
    elif name in ("center", "ljust", "rjust", "zfill"):
        _spend(max(numbers, default=0))
    elif name == "expandtabs":
        _spend(len(owner) * (max(numbers, default=8)))
    elif name == "replace":
        _check_replace(owner, *values)
    elif name == "translate":
        table = values[0] if values and isinstance(values[0], Mapping) else {}
        _spend(len(owner) * max((len(text) for text in table.values() if isinstance(text, str)), default=1))
    elif name in ("split", "rsplit") and values and isinstance(values[0], type(owner)) and values[0]:
        text, between = (one.decode("latin-1") if isinstance(one, bytes) else one for one in (owner, values[0]))
        _spend(text.count(between) * _OBJECT)
    return values


def _before_filter(name: str, values: list[Any], named: dict[str, Any]) -> list[Any]:
    """The value and the arguments of a filter, once what it makes has been paid for."""
    if not values:
        return values
    first, more = values[0], [*values[1:], *named.values()]
    if name not in _SHALLOW and name != "tojson":
        for value in (first, *more):
            _weigh(value)
    most = max(map(_number, more), default=0)
    if name == "join":
        return [_check_join(first, max((str(value) for value in more), key=len, default="")), *values[1:]]
    if name == "replace":
        _check_replace(first, *values[1:], **{"old": more[0], "new": more[1]} if named and len(more) > 1 else {})
    elif name == "format":
        _check_percent(str(first), named or tuple(values[1:]))
    elif name == "center":
        _spend(most)
    elif name in ("batch", "slice"):
        _spend(most * _OBJECT)
    elif name == "round" and most > 400:
        raise SecurityError("it rounds to too many digits")
    elif name == "indent":
        width = max([most, *(len(value) for value in more if isinstance(value, str))])
        _spend(len(str(first).splitlines()) * width)
    elif name == "sum" and not all(isinstance(value, int | float | str | None) for value in more):
        raise SecurityError("it adds up what is no number")
    if isinstance(first, str) and name in ("batch", "list", "map", "slice", "sort", "title", "unique", "wordcount"):
        _spend(len(first) * _ITEM)
    return values


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    start = int(hasattr(function, "jinja_pass_arg"))  # those take Jinja's context first

    @functools.wraps(function)
    def filtered(*values: Any, **named: Any) -> Any:
        _spend(1)
        checked = _before_filter(name, list(values[start:]), named)
        return _sized(function(*values[:start], *checked, **named))

    return filtered


def _bounded_test(function: Any) -> Callable[..., bool]:
    return lambda *values: function(*map(_sized, map(_weigh, values)))


class _Formatter(SandboxedFormatter):
    """str.format, each field of which is paid for."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(_weigh(value), conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        _spend(sum(int(number[:9]) for number in re.findall(r"\d+", format_spec)))
        return _sized(super().format_field(_weigh(value), format_spec))


# ---------------------------------------------------------------------------------------------- the environment


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates are compiled and rendered within `bounded()`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.pop("lipsum")
        self.filters = {name: _bounded_filter(name, own) for name, own in FILTERS.items() if name not in _LEFT_OUT}
        self.filters |= _COUNTERS
        self.tests |= {name: _bounded_test(self.tests[name]) for name in _COMPARE}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Gives templates one more filter."""
        self.filters[name] = _bounded_filter(name, function)

    def _generate(self, source: nodes.Template, *options: Any, **more: Any) -> str:
        return super()._generate(_Counted().visit(source), *options, **more)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length(), right.bit_length()
            _check_int(bits[0] * abs(right) if operator == "**" else sum(bits))
        elif operator == "*":
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            _spend(_size(sequence) * _number(times) if isinstance(sequence, str | bytes | list | tuple) else 1)
        elif operator == "%" and isinstance(left, str | bytes):
            _check_percent(left, right)
        elif operator == "+":
            _spend(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __callee: Any, *values: Any, **named: Any) -> Any:
        _spend(1)
        if isinstance(__callee, types.BuiltinMethodType):
            values = tuple(_check_method(__callee.__self__, __callee.__name__, [*values, *named.values()]))[
                : len(values)
            ]
        return _sized(super().call(__context, __callee, *values, **named))

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, _weigh(argument))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        form, by_map = str(value.__self__), value.__name__ == "format_map"

        def formatted(*values: Any, **named: Any) -> str:
            own = ((), values[0]) if by_map and values else (values, named)
            return str(_sized(_Formatter(self).vformat(form, *own)))

        return formatted


@pass_context
def _count_items(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend(1)
        yield item


@pass_context
def _count_output(context: Context, value: Any) -> Any:
    return _sized(_weigh(value))


@pass_context
def _count_joined(context: Context, parts: list[Any]) -> str:
    _budget.get().weigh(parts)
    return (markup_join if context.eval_ctx.autoescape else str_join)(parts)


# They take the context so that Jinja does not call them when it compiles a template.
_COUNTERS = {"each item": _count_items, "written": _count_output, "joined": _count_joined}


class _Counted(NodeTransformer):
    """Puts the counters into a program: around what loops go through, what is written, joined and compared."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("each item", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            _through(
                "written", nodes.Const(part.data, lineno=node.lineno) if isinstance(part, nodes.TemplateData) else part
            )
            for part in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("joined", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _through("written", node.expr)
        for operand in node.ops:
            operand.expr = _through("written", operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _through("written", node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through("written", node) if isinstance(node.arg, nodes.Slice) else node


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
