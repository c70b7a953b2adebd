"""A Jinja sandbox with limits on time and size, for chat templates, which are programs of untrusted origin.

Jinja's own sandbox restricts access to the machine, but not run time or memory. Here each loop iteration, call, operator and output is
charged to a budget per rendering, in any thread. Operations whose output may be much larger than their input are charged beforehand,
because they cannot be interrupted.
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
from typing_extensions import override

SECONDS = 3.0  # of processor time; templates in use need milliseconds
MAX_CHARACTERS = 2**27  # that a rendering produces, intermediate values included
_MAX_VALUE = 2**24  # characters of one value
_ITEM = 16  # cost of a list item, in characters
_OBJECT = 64  # cost of a new object
_MAX_BITS = 2**17  # of an integer
# Filters that chat templates do not need and whose output can grow without bound.
_REMOVED = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
# Filters that neither write, compare nor hash the items of a list, so these are not charged.
_SHALLOW = """attr batch count d default first items last length list map random reject rejectattr reverse select selectattr slice
sum""".split()

_COMPARE = "== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le in".split()  # tests


class _Budget:
    def __init__(self) -> None:
        self.left, self.end = MAX_CHARACTERS, time.thread_time() + SECONDS

    def spend(self, size: int) -> None:
        self.left -= size
        if size > _MAX_VALUE or self.left < 0:
            raise SecurityError("it produces too much text or too many values")
        if time.thread_time() > self.end:
            raise SecurityError(f"it takes more than {SECONDS:g} seconds")

    def weigh(self, value: Any, margin: int = 0) -> None:
        """Charge a value by its length when written out, nested items included; `margin` is added per item and nesting level."""
        level, depth = [value], 0
        while level:
            inner: list[Any] = []
            for part in level:
                if isinstance(part, str | bytes):
                    self.left -= len(part)
                elif isinstance(part, Mapping):
                    inner += [*part, *part.values()]
                elif isinstance(part, list | tuple | set | frozenset):
                    inner += part
                elif isinstance(part, int):
                    _check_int(part.bit_length())
                if len(inner) * _ITEM > self.left:
                    break
            depth += 1
            self.spend(len(level) // 2)
            self.left -= len(inner) * (_ITEM + margin * depth)
            self.spend(0)
            level = inner


_budget: contextvars.ContextVar[_Budget] = contextvars.ContextVar("budget")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Charge templates that run inside the context to one new budget; exceeding it raises a SecurityError."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def charge(value: Any, margin: int) -> None:
    """Charge the length of a value as text, with a margin per item and nesting level."""
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
    if bits > _MAX_BITS:
        raise SecurityError("it produces a number with too many digits")


# ---------------------------------------------------------------------------------------------- charging methods and filters


def _number(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _check_replace(text: Any, old: Any = "", new: Any = "", *_: Any, **named: Any) -> None:
    parts = [text, named.get("old", old), named.get("new", new)]
    text, old, new = parts if all(isinstance(part, bytes) for part in parts) else map(str, parts)
    _spend(len(text) + text.count(old) * len(new))


def _check_join(items: Any, separator: str) -> list[Any]:
    """Charge for joining items, and return them as a list."""
    parts = list(items)
    _weigh(parts)
    _spend(len(parts) * len(separator))
    return parts


def _check_percent(template: str | bytes, values: Any) -> None:
    text = template if isinstance(template, str) else template.decode("latin-1")
    found = re.findall(r"%(?:\([^)]*\))?[-+ #0]*(\d*)(?:\.(\d+))?", text)
    _spend(len(text) + sum(int(number[:9]) for pair in found for number in pair if number))
    arguments = values.values() if isinstance(values, Mapping) else values if isinstance(values, tuple) else (values,)
    if "*" in text:
        _spend(sum(map(_number, arguments)))
    for _ in range(max(1, text.count("%("))):
        _weigh(tuple(arguments))


def _check_method(owner: Any, name: str, values: list[Any]) -> list[Any]:
    """Charge for a call of a built-in method, and return its arguments."""
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
    """Charge for a call of a filter, and return its value and arguments."""
    if not values:
        return values
    first, more = values[0], [*values[1:], *named.values()]
    if name not in _SHALLOW and name != "tojson":
        for value in (first, *more):
            _weigh(value)
    largest = max(map(_number, more), default=0)
    if name == "join":
        return [_check_join(first, max((str(value) for value in more), key=len, default="")), *values[1:]]
    if name == "replace":
        _check_replace(first, *values[1:], **{"old": more[0], "new": more[1]} if named and len(more) > 1 else {})
    elif name == "format":
        _check_percent(str(first), named or tuple(values[1:]))
    elif name == "center":
        _spend(largest)
    elif name in ("batch", "slice"):
        _spend(largest * _OBJECT)
    elif name == "round" and largest > 400:
        raise SecurityError("it rounds to too many digits")
    elif name == "indent":
        width = max([largest, *(len(value) for value in more if isinstance(value, str))])
        _spend(len(str(first).splitlines()) * width)
    elif name == "sum" and not all(isinstance(value, int | float | str | None) for value in more):
        raise SecurityError("it sums values that are not numbers")
    if isinstance(first, str) and name in ("batch", "list", "map", "slice", "sort", "title", "unique", "wordcount"):
        _spend(len(first) * _ITEM)
    return values


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    start = int(hasattr(function, "jinja_pass_arg"))  # such filters take Jinja's context first

    @functools.wraps(function)
    def filtered(*values: Any, **named: Any) -> Any:
        _spend(1)
        checked = _before_filter(name, list(values[start:]), named)
        return _sized(function(*values[:start], *checked, **named))

    return filtered


def _bounded_test(function: Any) -> Callable[..., bool]:
    return lambda *values: function(*map(_sized, map(_weigh, values)))


class _Formatter(SandboxedFormatter):
    """A str.format that charges for each field."""

    @override
    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(_weigh(value), conversion)

    @override
    def format_field(self, value: Any, format_spec: str) -> Any:
        _spend(sum(int(number[:9]) for number in re.findall(r"\d+", format_spec)))
        return _sized(super().format_field(_weigh(value), format_spec))


# ---------------------------------------------------------------------------------------------- the environment


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment whose templates must be compiled and rendered within `bounded()`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.pop("lipsum")
        self.filters = {name: _bounded_filter(name, own) for name, own in FILTERS.items() if name not in _REMOVED}
        self.filters |= _COUNTERS
        self.tests |= {name: _bounded_test(self.tests[name]) for name in _COMPARE}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add a filter, with charging, to the templates' environment."""
        self.filters[name] = _bounded_filter(name, function)

    def _generate(self, source: nodes.Template, *options: Any, **more: Any) -> str:
        return super()._generate(_Counted().visit(source), *options, **more)

    @override
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

    @override
    def call(__self, __context: Context, __callee: Any, *values: Any, **named: Any) -> Any:
        _spend(1)
        if isinstance(__callee, types.BuiltinMethodType):
            values = tuple(_check_method(__callee.__self__, __callee.__name__, [*values, *named.values()]))[
                : len(values)
            ]
        return _sized(super().call(__context, __callee, *values, **named))

    @override
    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, _weigh(argument))

    @override
    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        form, by_map = str(value.__self__), value.__name__ == "format_map"

        def formatted(*values: Any, **named: Any) -> str:
            arguments = ((), values[0]) if by_map and values else (values, named)
            return str(_sized(_Formatter(self).vformat(form, *arguments)))

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


# These filters take the context so that Jinja does not evaluate them when it compiles a template.
_COUNTERS = {"each item": _count_items, "written": _count_output, "joined": _count_joined}


class _Counted(NodeTransformer):
    """A transformer that inserts the counting filters into a template: around loop iterables, output, concatenation, comparison, keys and slices."""

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
