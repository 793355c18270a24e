"""Text → number or tuple, where a number or tuple is asked for. Parsed, never evaluated."""

import ast
import operator
import types
import typing

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_LARGEST_EXPONENT, _MOST_BITS = 1024, 1024  # the largest float has 1024 bits
_LONGEST_TEXT = 1000


def parse_literal(text: str):
    """A numeric literal, a tuple or list of them, or arithmetic on them with + - * / **.

    Raises ValueError for anything else.
    """
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"a text of {len(text):,} characters is not a number, tuple or list of them")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"{text!r} is not a number, tuple or list") from error


def _value(node: ast.AST):
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, (int, float))):
        return node.value if node.value is None else _within_bits(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        operand = _value(node.operand)
        return -operand if isinstance(node.op, ast.USub) else +operand
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            raise ValueError("arithmetic is on numbers only")  # [0] * 10**9 would fill the memory
        if isinstance(node.op, ast.Pow) and (abs(right) > _LARGEST_EXPONENT or abs(left) > 1e9):
            raise ValueError("the power is too large")
        result = _OPERATORS[type(node.op)](left, right)
        if not isinstance(result, (int, float)):
            raise ValueError("not a number")
        return _within_bits(result)
    if isinstance(node, (ast.Tuple, ast.List)):
        items = [_value(item) for item in node.elts]
        return tuple(items) if isinstance(node, ast.Tuple) else items
    raise ValueError("not a number, tuple or list")


def _within_bits(number: int | float) -> int | float:
    if isinstance(number, int) and number.bit_length() > _MOST_BITS:
        raise ValueError("the number is too large")
    return number


def coerce(value, annotation):
    """`value` brought to what `annotation` asks for where it says so in another form; else as it is.

    "3e-3" becomes a number only where a number is asked for, "(0.9, 0.999)" a tuple only where
    a tuple or list is. What does not fit is returned unchanged, for the type check to refuse.
    """
    if typing.get_origin(annotation) is typing.Annotated:
        return coerce(value, typing.get_args(annotation)[0])
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, arguments)
    if annotation in (int, float):
        return _coerce_number(value, annotation)
    if origin in (list, tuple) or annotation in (list, tuple):
        return _coerce_sequence(value, origin or annotation, arguments)
    if origin is dict and isinstance(value, dict):
        return {k: coerce(v, arguments[1]) for k, v in value.items()}
    return value


def _coerce_union(value, arguments):
    if value in (None, "None") and type(None) in arguments:
        return None
    for argument in arguments:
        if isinstance(argument, type) and type(value) is argument:
            return value
        if typing.get_origin(argument) is typing.Literal and value in typing.get_args(argument):
            return value
    for argument in arguments:
        changed = coerce(value, argument)
        if type(changed) is not type(value) or changed != value:
            return changed
    return value


def _coerce_number(value, kind):
    number = _parsed(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return value
    if isinstance(number, kind):
        return number
    try:
        changed = kind(number)
    except (OverflowError, ValueError):  # too large for a float, infinite, not a number
        return value
    return changed if changed == number or kind is float else value


def _parsed(value):
    """What a text says; other values, and texts that say nothing numeric, as they are."""
    try:
        return parse_literal(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _coerce_sequence(value, kind, arguments):
    given = _parsed(value)
    if not isinstance(given, (list, tuple)):
        return value
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(arguments) != len(given):
            return value
        items = [coerce(v, a) for v, a in zip(given, arguments, strict=True)]
    else:
        item = arguments[0] if arguments else typing.Any
        items = [coerce(v, item) for v in given]
    return kind(items)
