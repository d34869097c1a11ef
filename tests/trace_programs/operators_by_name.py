"""Operators as functions, as methods and as signs."""

from scripted import heard, parents

import opto.trace.operators as ops
from opto.trace import node, operators

assert ops.add is not None and operators.concat is not None
x, words = node(7, name="x", trainable=True), node("a b", name="words", trainable=True)
data = node({"k": [1, 2, 3], "n": 4}, name="data", trainable=True)
results = [
    ops.add(x, 1), ops.subtract(x, 2), ops.multiply(x, 3), ops.divide(x, 2), ops.mod(x, 4),
    ops.power(x, 2), ops.lt(x, 9), ops.eq(x, 7), ops.not_(x), ops.is_(x, x), ops.in_("a", words),
    ops.concat(words, "!"), ops.upper(words), ops.lower(words), ops.title(words),
    ops.format(node("{}-{}"), x, words), ops.getitem(data, "k"), ops.keys(data), ops.values(data),
    ops.cond(x > 3, words, "no"), ops.to_list(words), ops.make_list(x, words), ops.identity(x),
    ops.ord_("a"), ops.chr_(98), ops.floor(x / 2), ops.list_extend(data["k"], [4]),
    ops.dict_update(data, {"m": 5}), words + "c", -x, x // 2, data["k"][1:], words.capitalize(),
    node(", ").join(["a", words]), x.eq(7), x.neq(7), words.swapcase(),
]  # fmt: skip
for result in results:
    print(result.data, parents(result))
print(words.split().data, words.strip().data, words.replace("a", "c").data)
print(data["k"].call("index", 2).data, ops.split(words, " ").data)
print(len(words), x == 7, 3 in data["k"], bool(x > 9), [each.data for each in data["k"]])
for name, item in data.items():
    print(name.data, item.data)
total = ops.add(ops.multiply(x, 2), 1)
total.backward("words")
print(heard(x))
